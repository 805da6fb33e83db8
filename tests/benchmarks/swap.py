"""`make bench-swap`: a real server swaps versions of a real MiniLM under load; every answer is held against the version it names.

Swaps are promotions to versions that are loaded for it, roll backs, promotions to versions on another graph (a second session), and
promotions of damaged versions, which must change nothing. The server has one processor core and the load the other, where there
are two.
"""

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from daemon.core.artefact import ADAPTER
from daemon.core.types import Aliases
from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import OrtLoader
from tests.benchmarks import minilm, report
from tests.benchmarks.minilm import LABELS, MODEL

WORDS = """
    parcel refund invoice late order wrong size charged twice please help delivery address change cancel return broken box never
    came card payment account money back again weeks phone answer email support
"""
TOLERANCE = 1e-4  # between probabilities: what else is in a batch changes how much is padded
SETTLED = (
    0.3  # seconds that a swap's window lasts on after the first answer of the new version: the proof at the endpoint
)
PATIENCE = 60.0


@dataclass(frozen=True)
class Plan:
    """How much of what. `failing`, `rollbacks` and `structural` are among the `swaps`; `rate` 0: as fast as it goes."""

    swaps: int = 1000
    failing: int = 100
    rollbacks: int = 100
    structural: int = 30
    requests: int = 1_000_000
    clients: int = 32
    rate: float = 0.0
    adapters: int = 8  # versions on the first graph
    others: int = 2  # versions on the second
    texts: int = 100
    seed: int = 1

    def kinds(self) -> list[str]:
        """What each swap is, shuffled; the first two are adapters so that there is something to roll back to."""
        rest = self.swaps - self.failing - self.rollbacks - self.structural - 2
        kinds = ["failing"] * self.failing + ["rollback"] * self.rollbacks + ["structural"] * self.structural
        kinds += ["adapter"] * rest
        random.Random(self.seed).shuffle(kinds)
        return ["adapter", "adapter", *kinds]


@dataclass
class Stage:
    """The registry, who is in it, and what each version answers to each text."""

    registry: FileRegistry
    adapters: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    expected: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def promote(self, number: int) -> None:
        aliases = self.registry.aliases(MODEL)
        previous = aliases.previous if aliases.champion == number else aliases.champion
        self.registry.move(MODEL, replace(aliases, champion=number, previous=previous))

    @property
    def aliases(self) -> Aliases:
        return self.registry.aliases(MODEL)


def set_up(folder: Path, plan: Plan) -> Stage:
    """Damaged versions are the oldest, so that nothing keeps them loaded; two spare ones the newest, which stay loaded."""
    graphs = minilm.bases()
    stage = Stage(FileRegistry.open_for_writing(folder / "registry"))
    opened: dict[str, object] = {}
    seeds = iter(range(1, 1000))

    def add(graph: str) -> int:
        seed = next(seeds)
        version, opened[graph] = minilm.add_version(
            stage.registry,
            folder / f"run-{seed}",
            graphs[graph],
            seed=seed,
            opened=opened.get(graph),  # type: ignore[arg-type]
        )
        return version.number

    stage.broken = [add("whole") for _ in range(2)]
    stage.adapters = [add("whole") for _ in range(plan.adapters)]
    stage.others = [add("half") for _ in range(plan.others)]
    for _ in range(2):
        add("whole")
    for number in stage.broken:
        _damage(stage.registry.artefact_folder(stage.registry.version(MODEL, number)) / ADAPTER)
    chance = random.Random(plan.seed)
    stage.texts = [" ".join(chance.choices(WORDS.split(), k=chance.randint(1, 8))) for _ in range(plan.texts)]
    loader = OrtLoader(stage.registry, threads=1)
    for number in (*stage.adapters, *stage.others):
        predictions = loader.load(stage.registry.version(MODEL, number)).predict(stage.texts)
        for index, prediction in enumerate(predictions):
            stage.expected[number, index] = list(prediction.probabilities)
    return stage


def _damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# --- the server ---


@contextmanager
def server(folder: Path, cores: Sequence[int]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    config = {
        "model": MODEL,
        "registry": {"path": str(folder / "registry")},
        "server": {
            "port": 0,
            "ready_file": str(folder / "ready"),
            "state": str(folder / "state.json"),
            "poll_every": "50ms",
            "keep_versions": 2,
        },
        "log": {"level": "error"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "daemon", "serve", "--config", str(folder / "config.yaml")]
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        yield process, _address(folder / "ready", process)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _address(ready: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (ready.exists() and ready.read_text().strip()):
        assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    return ready.read_text().strip()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


# --- the load ---


class Load:
    """Clients on kept connections; holds every answer against the table, and remembers when each came and how long it took."""

    def __init__(self, stage: Stage, plan: Plan, address: str) -> None:
        self._stage = stage
        self._plan = plan
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        self._bodies = [_request(text) for text in stage.texts]
        self._next_at = time.perf_counter()
        self.ended, self.seconds = array("d"), array("d")
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.newest: int | None = None  # version of the newest answer
        self.seen: set[int] = set()
        self.done = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(index)) for index in range(self._plan.clients)))

    async def _client(self, chance: random.Random) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        while not self.done.is_set():
            await self._pace()
            index = chance.randrange(len(self._bodies))
            started = time.perf_counter()
            try:
                writer.write(self._bodies[index])
                status, body = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failed.append(repr(error))
                reader, writer = await asyncio.open_connection(self._host, self._port)
                continue
            now = time.perf_counter()
            self.ended.append(now)
            self.seconds.append(now - started)
            if status == 200:
                self._check(index, body)
            else:
                self.failed.append(f"{status}: {body[:200]!r}")
        writer.close()

    async def _pace(self) -> None:
        """Requests start at the plan's rate, whether earlier ones were answered or not, as far as there are clients."""
        if self._plan.rate:
            self._next_at = max(self._next_at, time.perf_counter() - 0.1) + 1 / self._plan.rate
            await asyncio.sleep(max(0.0, self._next_at - time.perf_counter()))

    def _check(self, index: int, body: bytes) -> None:
        answer = json.loads(body)
        number = answer["version"]
        expected = self._stage.expected.get((number, index))
        given = [answer["probabilities"][label] for label in LABELS]
        self.newest = number
        self.seen.add(number)
        if expected is None or max(abs(a - b) for a, b in zip(given, expected, strict=True)) > TOLERANCE:
            self.wrong.append(f"version {number}, text {index}: {given}, expected {expected}")
        elif answer["label"] != LABELS[max(range(len(LABELS)), key=given.__getitem__)]:
            self.wrong.append(f"version {number}, text {index}: label {answer['label']} of {given}")


def _request(text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    return (
        b"POST /predict HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (
            len(body),
            body,
        )
    )


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    return int(head[9:12]), await reader.readexactly(length)


# --- the swaps ---


@dataclass
class Swaps:
    """Moves the aliases one swap after another, evenly over the load; remembers the window of each and the server's reports."""

    stage: Stage
    plan: Plan
    load: Load
    client: httpx.AsyncClient
    pid: int
    windows: list[tuple[float, float]] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)
    reports: dict[tuple[str, int], dict[str, object]] = field(default_factory=dict)
    rss: list[int] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    async def run(self) -> None:
        kinds = self.plan.kinds()
        for done, kind in enumerate(kinds):
            share = done / len(kinds)
            while len(self.load.ended) < share * self.plan.requests:
                await asyncio.sleep(0.01)
            started = time.perf_counter()
            await getattr(self, f"_{kind}")()
            await asyncio.sleep(SETTLED)
            self.windows.append((started, time.perf_counter()))
            self.made[kind] = self.made.get(kind, 0) + 1
            if not await self._second_graph_is_loaded():
                self.rss.append(resident(self.pid))
            if done % 40 == 39:
                await self._collect()
        while len(self.load.ended) < self.plan.requests:
            await asyncio.sleep(0.01)
        await self._collect()
        self.load.done.set()

    async def _adapter(self) -> None:
        await self._promote(self.stage.adapters)

    async def _structural(self) -> None:
        await self._promote(self.stage.others)

    async def _promote(self, numbers: Sequence[int]) -> None:
        aliases = self.stage.aliases
        number = self.chance.choice([each for each in numbers if each not in (aliases.champion, aliases.previous)])
        self.stage.promote(number)
        await self._answers(number)

    async def _rollback(self) -> None:
        """To the version that answered before; it is loaded still."""
        aliases = self.stage.aliases
        target = aliases.previous if aliases.previous not in self.stage.broken else None
        if target is None or target == self.load.newest:
            await self._adapter()
            target = self.stage.aliases.previous
        assert target is not None
        self.stage.promote(target)
        await self._answers(target)

    async def _failing(self) -> None:
        """A damaged version becomes champion: who answered goes on, the server says why, and the aliases are moved back."""
        number, served = self.chance.choice(self.stage.broken), self.load.newest
        before = self.stage.aliases
        self.stage.promote(number)
        deadline = time.perf_counter() + PATIENCE
        while not await self._failures_of(number):
            assert time.perf_counter() < deadline, f"damaged version {number} was not refused"
            await asyncio.sleep(0.05)
        assert self.load.newest == served
        moved = self.stage.aliases
        self.stage.registry.move(MODEL, replace(before, generation=moved.generation))

    async def _failures_of(self, number: int) -> int:
        status = (await self.client.get("/status")).json()
        assert status["served"] != number
        return next((each["failures"] for each in status["versions"] if each["number"] == number), 0)

    async def _second_graph_is_loaded(self) -> bool:
        versions = (await self.client.get("/status")).json()["versions"]
        return any(each["number"] in self.stage.others for each in versions)

    async def _answers(self, number: int) -> None:
        deadline = time.perf_counter() + PATIENCE
        while self.load.newest != number:
            assert time.perf_counter() < deadline, f"version {number} does not answer"
            await asyncio.sleep(0.002)

    async def _collect(self) -> None:
        for each in (await self.client.get("/swaps")).json()["swaps"]:
            self.reports[each["at"], each["after"]] = each


# --- the figures ---


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Runs the plan; returns {"ratios": ..., "figures": ...}. Fails when an answer was missing or wrong."""
    stage = set_up(folder, plan)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    try:
        with server(folder, cores[:1]) as (process, address):
            stage.promote(stage.adapters[0])
            load, swaps = asyncio.run(_under_load(stage, plan, process.pid, address))
    finally:
        os.sched_setaffinity(0, cores)
    return figures(plan, load, swaps)


async def _under_load(stage: Stage, plan: Plan, pid: int, address: str) -> tuple[Load, Swaps]:
    load = Load(stage, plan, address)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client:
        deadline = time.monotonic() + PATIENCE
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline, "no version is served"
            await asyncio.sleep(0.05)
        swaps = Swaps(stage, plan, load, client, pid)
        asking = asyncio.create_task(load.run())
        try:
            await swaps.run()
        finally:
            load.done.set()
            await asking
    return load, swaps


def figures(plan: Plan, load: Load, swaps: Swaps) -> dict[str, Any]:
    inside, outside = _split(load, swaps.windows)
    reports = [each for each in swaps.reports.values() if each["outcome"] != "failed"]
    switch_ms = [float(each["switch_ms"]) for each in reports]  # type: ignore[arg-type]
    load_ms = [float(each["load_ms"]) for each in reports if each["load_ms"]]  # type: ignore[arg-type]
    wall = load.ended[-1] - load.ended[0]
    fifth = max(1, len(swaps.rss) // 5)  # the first fifth fills what is filled once; memory with one graph loaded only
    first, last = statistics.median(swaps.rss[fifth : 2 * fifth + 1]), statistics.median(swaps.rss[-fifth:])
    steady, swapping = report.percentile(outside, 0.99), report.percentile(inside, 0.99)
    return {
        "ratios": {"p99_in_swap_windows": swapping / steady},
        "figures": {
            "swaps": sum(swaps.made.values()),
            "kinds": swaps.made,
            "requests": len(load.ended),
            "requests_per_second": len(load.ended) / wall,
            "seconds": wall,
            "clients": plan.clients,
            "rate_asked": plan.rate,
            "failed": len(load.failed),
            "wrong": len(load.wrong),
            "examples_of_trouble": [*load.failed[:3], *load.wrong[:3]],
            "versions_seen": len(load.seen),
            "p50_ms_steady": 1000 * report.percentile(outside, 0.5),
            "p99_ms_steady": 1000 * steady,
            "p99_ms_in_swap_windows": 1000 * swapping,
            "max_ms_steady": 1000 * max(outside, default=math.nan),
            "max_ms_in_swap_windows": 1000 * max(inside, default=math.nan),
            "share_of_requests_in_swap_windows": len(inside) / len(load.ended),
            "swap_ms_p50": report.percentile(switch_ms, 0.5),
            "swap_ms_max": max(switch_ms),
            "load_ms_p50": report.percentile(load_ms, 0.5),
            "load_ms_max": max(load_ms, default=math.nan),
            "reports": len(reports),
            "reports_with_failed_requests": sum(bool(each["failed"]) for each in reports),
            "returned": sum(each["outcome"] == "returned" for each in reports),
            "rss_mb": round(last / 1e6, 1),
            "rss_growth": last / first - 1,
        },
    }


def _split(load: Load, windows: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Seconds of the requests that were out during a swap's window, and of the others."""
    inside: list[float] = []
    outside: list[float] = []
    order = sorted(range(len(load.ended)), key=load.ended.__getitem__)
    place = 0
    for index in order:
        ended, seconds = load.ended[index], load.seconds[index]
        while place < len(windows) and windows[place][1] < ended - seconds:
            place += 1
        within = place < len(windows) and windows[place][0] <= ended
        (inside if within else outside).append(seconds)
    return inside, outside


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--short", action="store_true", help="a fortieth of it, as in `make test`")
    arguments = vars(parser.parse_args())
    plan = SHORT if arguments.pop("short") else Plan(**arguments)
    folder = Path(tempfile.mkdtemp(prefix="relearnd-bench-"))
    try:
        found = measure(plan, folder)
    finally:
        shutil.rmtree(folder)
    report.write("swap", **found)
    trouble = found["figures"]["failed"] + found["figures"]["wrong"]
    return 1 if trouble else 0


SHORT = Plan(swaps=12, failing=2, rollbacks=2, structural=2, requests=2000, clients=4, adapters=4, texts=40)

if __name__ == "__main__":
    sys.exit(main())
