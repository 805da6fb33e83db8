"""`make bench-serve`: text in, label out over HTTP, against a raw onnxruntime loop without HTTP and against other servers on the
same graph, adapter and tokenizer. One processor core for the server, another for the load.

The model is trained on a few hundred real tweets, once, and kept in build/bench/serve; so are the servers, ours too, each in an
environment of its own. A peer that cannot be installed or does not start is named as missing. Rounds are interleaved and medians
taken, because machines are seldom quiet for ten minutes. Ratios to raw: at concurrency 1 to batches of one, at 8 and 32 to batches
of 8. The raw loop and the peers leave onnxruntime's graph optimisers as they are, we leave some out: so does `tuned_raw`.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from daemon.serve.ort_loader import SLOW_FUSIONS
from tests.benchmarks import report, serve_model
from tests.benchmarks.report import FOLDER

HERE = Path(__file__).parent / "serving"
PEERS = FOLDER / "peers"
COMMON = ("onnxruntime==1.31.1", "tokenizers==0.23.3", "numpy==2.4.6")
OURS = ("--constraint", "constraints.txt", "--editable", ".[serve]")  # as in the server's image
PATIENCE = 90.0  # seconds for a server to start
CHECKED = 24  # texts whose labels are compared before anything is measured
IDLE = 4.0  # seconds without requests
TICKS = os.sysconf("SC_CLK_TCK")
Figures = dict[str, float]


@dataclass(frozen=True)
class Plan:
    rounds: int = 3
    seconds: float = 3.0
    concurrency: tuple[int, ...] = (1, 8, 32)
    fixed_share: float = 0.5  # of raw fp32: the fixed rate


@dataclass(frozen=True)
class Contender:
    """`command` of a port; `form` of the request's body; `precision` of the base."""

    name: str
    command: Callable[[int], list[str]]
    form: str = "text"
    precision: str = "fp32"


@dataclass(frozen=True)
class Peer:
    packages: tuple[str, ...]
    command: Callable[[Path, int], list[str]]
    form: str = "text"


PEER_SERVERS = {
    "fastapi": Peer(
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        lambda bin, port: [f"{bin}/python", "peer_fastapi.py", str(port)],
    ),
    "litserve": Peer(("litserve==0.2.19",), lambda bin, port: [f"{bin}/python", "peer_litserve.py", str(port)]),
    "bentoml": Peer(
        ("bentoml==1.4.39",),
        lambda bin, port: [
            f"{bin}/bentoml",
            "serve",
            "peer_bentoml:Classifier",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        form="texts",
    ),
    "ray": Peer(("ray[serve]==2.60.0",), lambda bin, port: [f"{bin}/python", "peer_ray.py", str(port)]),
}


# --- who takes part ---


def install(name: str, wanted: Sequence[str]) -> str | None:
    """What `wanted` says to pip, into an environment of its own. Returns why it could not be."""
    folder, described = PEERS / name, "\n".join(wanted)
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == described:
        return None
    print(f"installing {name}: {' '.join(wanted)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, *wanted]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr or done.stdout).strip().splitlines()[-1]
    stamp.write_text(described)
    return None


def ours(model: serve_model.Model, precision: str) -> Contender:
    def command(port: int) -> list[str]:
        folder = model.folder / f"server-{precision}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        server = {"port": port, "state": str(folder / "state.json")}
        registry = {"path": str(model.registries[precision])}
        config = {"model": serve_model.MODEL, "registry": registry, "server": server, "log": {"level": "error"}}
        (folder / "config.yaml").write_text(json.dumps(config))
        return [f"{PEERS}/relearnd/bin/python", "-m", "daemon", "serve", "--config", str(folder / "config.yaml")]

    return Contender(f"relearnd_{precision}", command, precision=precision)


def contenders(model: serve_model.Model, peers: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Those that can take part, and why others cannot."""
    if reason := install("relearnd", OURS):
        raise RuntimeError(f"relearnd cannot be installed: {reason}")
    missing, found = {}, [ours(model, "fp32"), ours(model, "int8")]
    for name in peers:
        peer = PEER_SERVERS[name]
        if reason := install(name, [*COMMON, *peer.packages]):
            missing[name] = reason
        else:
            found.append(Contender(name, lambda port, name=name: peer_command(name, port), peer.form))  # type: ignore[misc]
    return found, missing


def peer_command(name: str, port: int) -> list[str]:
    return PEER_SERVERS[name].command(PEERS / name / "bin", port)


# --- running them ---


@contextmanager
def running(contender: Contender, plan_file: Path) -> Iterator["Server"]:
    """The server on its core, answering rightly; all its processes are gone afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mark = uuid.uuid4().hex
    folder = str(Path.cwd()) if contender.name.startswith("relearnd") else str(HERE)
    environment = {**os.environ, "BENCH_PLAN": str(plan_file), "BENCH_MARK": mark, "PYTHONWARNINGS": "ignore"}
    environment |= {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    log = (FOLDER / "serve" / f"{contender.name}.log").open("wb")
    process = subprocess.Popen(
        contender.command(port),
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=log,
        preexec_fn=lambda: os.sched_setaffinity(0, [SERVER_CORE]),
    )
    server = Server(contender, f"127.0.0.1:{port}", mark)
    try:
        server.wait_until_right(process, json.loads(plan_file.read_text()))
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for pid in server.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Server:
    contender: Contender
    address: str
    mark: str

    def pids(self) -> list[int]:
        """All its processes, however they came to be: they inherit a variable of the environment."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdigit() and f"BENCH_MARK={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def cpu_seconds(self) -> float:
        fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids())
        return sum(int(each[11]) + int(each[12]) for each in fields) / TICKS

    def memory_mb(self) -> float:
        """Resident; of several processes the proportional sizes, so that what they share counts once."""
        pids = self.pids()
        name = "Rss" if len(pids) == 1 else "Pss"
        lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024

    def wait_until_right(self, process: subprocess.Popen[bytes], plan: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.contender.name} did not start; see {self.contender.name}.log in {FOLDER / 'serve'}"
                )
            time.sleep(0.2)
        if self.contender.precision != "fp32":
            return
        given = [self._label(text) for text in plan["texts"][:CHECKED]]
        assert given == plan["expected"][:CHECKED], f"{self.contender.name} answers otherwise than the graph does"

    def _answers(self) -> bool:
        try:
            return bool(self._label("good"))
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    def _label(self, text: str) -> str:
        body = {"text": text} if self.contender.form == "text" else {"texts": [text]}
        answer = httpx.post(f"http://{self.address}/predict", json=body, timeout=30).raise_for_status().json()
        return str(answer["label"] if isinstance(answer, dict) else answer[0])

    def under_load(self, plan_file: Path, connections: int, seconds: float, rate: float = 0.0) -> Figures:
        command = [
            sys.executable,
            "load.py",
            self.address,
            self.contender.form,
            str(connections),
            str(seconds),
            f"{rate:.3f}",
        ]
        load = subprocess.Popen(
            command,
            cwd=HERE,
            env={**os.environ, "BENCH_PLAN": str(plan_file)},
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, [LOAD_CORE]),
        )
        assert load.stdout is not None
        load.stdout.readline()
        before = self.cpu_seconds()
        figures = json.loads(load.stdout.readline())
        cpu = self.cpu_seconds() - before
        load.wait()
        assert not figures["failed"], (
            f"{self.contender.name} failed {figures['failed']} of {figures['answers']} requests"
        )
        return {
            **{name: figures[name] for name in ("rps", "p50_ms", "p99_ms", "load_cores")},
            "cpu_s_per_1000": 1000 * cpu / figures["answers"],
            "memory_mb": self.memory_mb(),
        }

    def idle_cores(self) -> float:
        before = self.cpu_seconds()
        time.sleep(IDLE)
        return (self.cpu_seconds() - before) / IDLE


def raw(plan_file: Path, seconds: float) -> Figures:
    done = subprocess.run(
        [sys.executable, "raw.py", str(seconds), *SLOW_FUSIONS],
        cwd=HERE,
        env={**os.environ, "BENCH_PLAN": str(plan_file)},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, [SERVER_CORE]),
    )
    found: Figures = json.loads(done.stdout)
    return found


# --- the rounds ---


def measure(server: Server, plan: Plan, plan_file: Path, rate: float) -> dict[str, float]:
    found: dict[str, float] = (
        {"idle_cores": server.idle_cores()} if server.contender.name.startswith("relearnd") else {}
    )
    for connections in plan.concurrency:
        for name, value in server.under_load(plan_file, connections, plan.seconds).items():
            found[f"c{connections}_{name}"] = value
    for name, value in server.under_load(plan_file, max(plan.concurrency), plan.seconds, rate).items():
        found[f"fixed_{name}"] = value
    return found


def run(
    plan: Plan, model: serve_model.Model, taking_part: Sequence[Contender]
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """One flat table of figures a round; and who fell out, and why."""
    rounds, fallen = [], {}
    for number in range(plan.rounds):
        figures: dict[str, float] = {}
        rate = 0.0
        for contender in taking_part:
            if contender.name in fallen:
                continue
            plan_file = model.plans[contender.precision]
            if contender.name.startswith("relearnd"):  # raw right before, for machines change from minute to minute
                found = raw(plan_file, plan.seconds)
                figures |= {f"raw_{contender.precision}_{name}": value for name, value in found.items()}
                rate = rate or plan.fixed_share * found["b8"]
            try:
                with running(contender, plan_file) as server:
                    found = measure(server, plan, plan_file, rate)
            except (RuntimeError, AssertionError) as error:
                fallen[contender.name] = str(error)
                print(f"  {contender.name} falls out: {error}", flush=True)
                continue
            figures |= {f"{contender.name}_{name}": value for name, value in found.items()}
            print(f"  round {number + 1}: {contender.name} {found['c8_rps']:.0f} req/s at concurrency 8", flush=True)
        figures["fixed_rate"] = rate
        rounds.append(figures)
    return rounds, fallen


def medians(rounds: Sequence[Mapping[str, float]]) -> Figures:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: statistics.median(figures[name] for figures in rounds if name in figures) for name in names}


def ratios(rounds: Sequence[Mapping[str, float]], peers: Sequence[str]) -> dict[str, float]:
    """Medians of the ratios within each round."""
    pairs = {f"vs_raw_fp32_c{c}": (f"relearnd_fp32_c{c}_rps", f"raw_fp32_b{min(c, 8)}") for c in (1, 8, 32)}
    pairs |= {
        f"vs_tuned_raw_fp32_c{c}": (f"relearnd_fp32_c{c}_rps", f"raw_fp32_b{min(c, 8)}_tuned") for c in (1, 8, 32)
    }
    pairs |= {  # the same by CPU time, which other work on the machine disturbs less
        f"cpu_vs_raw_fp32_c{c}": (f"raw_fp32_b{min(c, 8)}_cpu_s_per_1000", f"relearnd_fp32_c{c}_cpu_s_per_1000")
        for c in (1, 8, 32)
    }
    pairs["vs_raw_int8_c8"] = ("relearnd_int8_c8_rps", "raw_int8_b8")
    pairs["vs_tuned_raw_int8_c8"] = ("relearnd_int8_c8_rps", "raw_int8_b8_tuned")
    pairs["int8_c8_vs_raw_fp32"] = ("relearnd_int8_c8_rps", "raw_fp32_b8")
    pairs |= {f"vs_{peer}_c8": ("relearnd_fp32_c8_rps", f"{peer}_c8_rps") for peer in peers}
    pairs |= {f"p99_vs_{peer}_c8": ("relearnd_fp32_c8_p99_ms", f"{peer}_c8_p99_ms") for peer in peers}
    found = {
        name: [figures[above] / figures[below] for figures in rounds if above in figures and below in figures]
        for name, (above, below) in pairs.items()
    }
    return {name: statistics.median(values) for name, values in found.items() if values}


def shown(figures: Figures, names: Sequence[str], plan: Plan) -> str:
    columns = ("rps", "p50_ms", "p99_ms", "cpu_s_per_1000", "memory_mb", "load_cores")
    lines = [f"{'server':<16}{'load':>8}" + "".join(f"{column:>16}" for column in columns)]
    for name in names:
        for load in (*(f"c{connections}" for connections in plan.concurrency), "fixed"):
            values = [figures.get(f"{name}_{load}_{column}") for column in columns]
            lines.append(f"{name:<16}{load:>8}" + "".join(f"{'-' if v is None else f'{v:.4g}':>16}" for v in values))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument(
        "--seconds", type=float, default=Plan.seconds, help="of each load; a quarter more is not counted"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEER_SERVERS), default=list(PEER_SERVERS))
    asked = parser.parse_args()
    plan = Plan(rounds=asked.rounds, seconds=asked.seconds)
    model = serve_model.model(FOLDER / "serve")
    taking_part, missing = contenders(model, asked.peers)
    rounds, fallen = run(plan, model, taking_part)
    figures = medians(rounds)
    names = [contender.name for contender in taking_part if contender.name not in fallen]
    print(shown(figures, names, plan))
    peers = [name for name in asked.peers if name in names]
    report.write(
        "serve",
        ratios=ratios(rounds, peers),
        figures={
            **{name: round(value, 4) for name, value in figures.items()},
            **model.facts,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "cores": f"server {SERVER_CORE}, load {LOAD_CORE}",
            "missing": missing | fallen,
            "packages": {name: list(PEER_SERVERS[name].packages) for name in peers},
        },
    )


CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]

if __name__ == "__main__":
    main()
