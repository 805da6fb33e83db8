"""The whole server on a port: swaps under load, damage, drain, and what it must not load."""

import gc
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from daemon.config import Config
from daemon.core.artefact import ADAPTER, WEIGHTS
from daemon.core.errors import UnavailableError
from daemon.core.types import Prediction
from daemon.registry.file_registry import FileRegistry
from daemon.serve.batcher import Batcher
from daemon.serve.last_good import LastGoodFile
from daemon.serve.manager import Manager
from daemon.serve.ort_loader import OrtLoader, OrtScorer, Servable
from daemon.serve.router import Loaded
from daemon.serve.swap_report import SwapJudge
from daemon.server import serve
from tests.artefacts import MODEL, add_version, finished_run, promote, spoil_golden

TEXTS = ["good", "bad", "late flight", "on time and very good service", "bad crew and very very late"]
PATIENCE = 20.0  # seconds for what should take milliseconds


def settings(tmp_path: Path, **server: Any) -> dict[str, Any]:
    quick = {
        "port": 0,
        "ready_file": str(tmp_path / "ready"),
        "poll_every": "5ms",
        "keep_versions": 2,
        "state": str(tmp_path / "state.json"),
    }
    return {"model": MODEL, "registry": {"path": str(tmp_path / "registry")}, "server": {**quick, **server}}


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it is true of it."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return result


def address(tmp_path: Path) -> str:
    ready = tmp_path / "ready"
    return str(until(lambda: ready.exists() and ready.read_text().strip()))


@contextmanager
def serving(tmp_path: Path, **server: Any) -> Iterator[httpx.Client]:
    """A server in this process, and a client of it."""
    stop, codes = threading.Event(), []
    config = Config.model_validate(settings(tmp_path, **server))
    thread = threading.Thread(target=lambda: codes.append(serve(config, stop)))
    thread.start()
    try:
        with httpx.Client(base_url=address(tmp_path), timeout=PATIENCE) as client:
            yield client
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert codes == [0]


def served(client: httpx.Client) -> int | None:
    number: int | None = client.get("/status").json()["served"]
    return number


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    return FileRegistry.open_for_writing(tmp_path / "registry")


def test_it_starts_before_there_is_a_registry_and_is_ready_once_there_is_a_champion(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        assert client.get("/livez").status_code == 200
        waiting = client.get("/readyz")
        assert (waiting.status_code, waiting.json()["error"]) == (503, "model 'tweets' has no champion yet")
        registry = FileRegistry.open_for_writing(tmp_path / "registry")
        version = add_version(registry, tmp_path / "r1", seed=1)
        promote(registry, 1)
        until(lambda: client.get("/readyz").status_code == 200)
        answer = client.post("/predict", json={"text": "good"})
        [expected] = OrtScorer(registry, threads=1).predict(version, ["good"])
        assert (answer.json()["version"], answer.json()["label"]) == (1, expected.label)
        assert answer.headers["X-Model-Version"] == "1"
    assert not (tmp_path / "ready").exists()
    assert gc.get_freeze_count() == 0, "a process may go on without its server"


# --- swaps under load ---


@dataclass
class Load:
    """Clients that ask without a pause and keep every answer."""

    url: str
    clients: int = 4
    answers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while not self._done.is_set():
                text = chance.choice(TEXTS)
                try:
                    answer = client.post("/predict", json={"text": text})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers.append((text, answer.json()))
                else:
                    self.failures.append(answer.text)


def test_swaps_under_load_fail_no_request_and_each_answer_is_that_of_the_version_it_names(
    tmp_path: Path, registry: FileRegistry
) -> None:
    swaps = 36
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    with serving(tmp_path) as client:
        until(lambda: served(client) == 1)
        with Load(str(client.base_url)) as load:
            for number in range(2, swaps + 2):
                add_version(registry, tmp_path / f"r{number}", seed=number, labels=("a", "b", "c")[: 2 + number % 2])
                promote(registry, number)
                until(lambda number=number: served(client) == number)
            reports = until(lambda: len(found := client.get("/swaps").json()["swaps"]) > swaps and found)
        status = client.get("/status").json()
    assert load.failures == []
    assert [swap["after"] for swap in reports] == list(range(1, swaps + 2))
    assert {(swap["failed"], swap["golden"]["equal"], swap["outcome"]) for swap in reports[:-1]} == {
        (0, True, "switched")
    }
    assert all(swap["requests"] >= swap["golden"]["texts"] > 0 for swap in reports[1:-1])
    assert len(status["versions"]) <= 3, "old versions are unloaded"
    assert len({answer["version"] for _, answer in load.answers}) > swaps / 2
    expected = predictions_by_version(registry)
    for text, answer in load.answers:
        prediction = expected[answer["version"], text]
        assert answer["label"] == prediction.label
        np.testing.assert_allclose(list(answer["probabilities"].values()), prediction.probabilities, atol=1e-5)


def predictions_by_version(registry: FileRegistry) -> dict[tuple[int, str], Prediction]:
    scorer = OrtScorer(registry, threads=1)
    return {
        (version.number, text): prediction
        for version in registry.versions(MODEL)
        for text, prediction in zip(TEXTS, scorer.predict(version, TEXTS), strict=True)
    }


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 4
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def make_a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, make_a_link])
def test_a_champion_with_damaged_files_is_not_served_and_the_old_one_stays(
    damage: Callable[[Path], None], tmp_path: Path, registry: FileRegistry
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    with serving(tmp_path) as client:
        until(lambda: served(client) == 1)
        run = finished_run(tmp_path / "r2", seed=2)
        damaged_elsewhere = FileRegistry.open_for_writing(tmp_path / "next")
        version = damaged_elsewhere.add(
            run.spec, run.result, run.folder, lineage=run.lineage, created_at=run.spec.created_at
        )
        damage(damaged_elsewhere.artefact_folder(version) / (WEIGHTS if damage is cut_short else ADAPTER))
        damaged_elsewhere.artefact_folder(version).rename(registry.artefact_folder(version))
        record = json.loads((tmp_path / "next/models" / MODEL / "versions/1.json").read_bytes())
        (tmp_path / "registry/models" / MODEL / "versions/2.json").write_text(json.dumps({**record, "number": 2}))
        promote(registry, 2)
        assert_still_served(client, 1, failed=2)


def test_a_champion_that_answers_otherwise_than_when_it_was_judged_is_not_served(
    tmp_path: Path, registry: FileRegistry
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    with serving(tmp_path) as client:
        until(lambda: served(client) == 1)
        run = finished_run(tmp_path / "r2", seed=2)
        spoil_golden(run)
        registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=run.spec.created_at)
        promote(registry, 2)
        assert_still_served(client, 1, failed=2)


def assert_still_served(client: httpx.Client, number: int, *, failed: int) -> None:
    def gave_up() -> dict[str, Any] | None:
        versions = {version["number"]: version for version in client.get("/status").json()["versions"]}
        version: dict[str, Any] | None = versions.get(failed)
        return version if version and version["failures"] == 3 else None

    assert until(gave_up)["state"] == "failed"
    assert client.get("/readyz").status_code == 200
    answer = client.post("/predict", json={"text": "good"})
    assert (answer.status_code, answer.json()["version"]) == (200, number)
    assert client.post(f"/v2/models/{MODEL}/versions/{failed}/infer", content=b"{}").status_code in (400, 404)
    metrics = client.get("/metrics").text
    assert f"relearnd_served_version {number}.0" in metrics
    assert "relearnd_load_failures_total 0.0" not in metrics


def test_a_roll_back_answers_at_once_from_what_is_still_loaded(tmp_path: Path, registry: FileRegistry) -> None:
    for number in (1, 2):
        add_version(registry, tmp_path / f"r{number}", seed=number)
    promote(registry, 1)
    promote(registry, 2)
    with serving(tmp_path) as client:
        until(lambda: [version["state"] for version in client.get("/status").json()["versions"]] == ["ready", "ready"])
        for file in registry.artefact_folder(registry.version(MODEL, 1)).iterdir():
            file.unlink()
        promote(registry, 1)
        until(lambda: served(client) == 1)


def test_the_metrics_say_what_is_loaded_how_long_swaps_took_and_how_many_wait_even_while_inference_hangs(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metric(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"relearnd_{name} "))

    def ask() -> int:
        return httpx.post(client.base_url.join("/predict"), json={"text": "good"}, timeout=PATIENCE).status_code

    go_on, hangs, reached, sound = threading.Event(), threading.Event(), threading.Event(), Servable.infer

    def hanging(servable: Servable, rows: Sequence[Any]) -> Sequence[Prediction]:
        if hangs.is_set():
            reached.set()
            go_on.wait(PATIENCE)
        return sound(servable, rows)

    monkeypatch.setattr(Servable, "infer", hanging)
    monkeypatch.setattr(Batcher, "compute_here", lambda *_: False)
    for number in (1, 2):
        add_version(registry, tmp_path / f"r{number}", seed=number)
        promote(registry, number)
    with serving(tmp_path, inference_threads=1) as client, ThreadPoolExecutor(3) as clients:
        until(lambda: metric("loaded_versions") == 2)
        until(lambda: metric("swap_seconds_count") == 1)
        assert metric("swap_seconds_sum") > 0
        hangs.set()
        asking = [clients.submit(ask)]
        assert reached.wait(PATIENCE)
        asking += [clients.submit(ask) for _ in range(2)]
        until(lambda: metric("queue_texts") >= 2)  # more when what hangs is the server's own golden texts
        go_on.set()
        assert [each.result(PATIENCE) for each in asking] == [200] * 3
        until(lambda: metric("queue_texts") == 0)
        assert metric("batch_texts_sum") >= 3


# --- hostile and heavy ---


def test_no_body_whatever_makes_a_500(tmp_path: Path, registry: FileRegistry) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    chance = random.Random(7)
    good = json.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}).encode()
    atoms = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"text"',
        b":",
        b",",
        b"null",
        b"1e999",
        b"-0",
        b'"\\u0000"',
        b"\xff",
        b'"\xf0\x9f"',
        b"NaN",
    ]
    bodies = [b"".join(chance.choices(atoms, k=chance.randrange(1, 12))) for _ in range(150)]
    for _ in range(150):
        mutant = bytearray(chance.choice([good, b'{"text": "good"}', b'{"texts": ["good", "bad"]}']))
        for _ in range(chance.randrange(1, 4)):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        bodies.append(bytes(mutant))
    bodies += [
        json.dumps({"text": text}).encode() for text in ("\x00", "a" * 100_000, "\u202e\U0010ffff", "é\u0301" * 999)
    ]
    with serving(tmp_path) as client:
        until(lambda: served(client) == 1)
        codes = Counter(
            client.post(path, content=body).status_code
            for body in bodies
            for path in ("/predict", f"/v2/models/{MODEL}/infer")
        )
        assert client.post("/predict", json={"text": "good"}).status_code == 200
    assert set(codes) <= {200, 400}, codes
    assert codes[400] > 100 and codes[200] > 5


def test_a_body_that_is_too_large_is_refused_before_its_end_and_the_connection_closed(tmp_path: Path) -> None:
    with serving(tmp_path, max_body="10kB") as client, connected(client.base_url) as endless:
        endless.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        endless.sendall(b"%x\r\n%s\r\n" % (11_000, b"x" * 11_000))
        assert read_all(endless).startswith(b"HTTP/1.1 413")


def connected(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port or 80), timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


# --- start and stop ---


def test_settings_reach_what_they_are_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, dict[str, Any]] = {}

    def noting(name: str, kind: Callable[..., Any]) -> Callable[..., Any]:
        def make(*given: Any, **how: Any) -> Any:
            made[name] = how
            return kind(*given, **how)

        return make

    for name, kind in {"OrtLoader": OrtLoader, "Batcher": Batcher, "SwapJudge": SwapJudge, "Manager": Manager}.items():
        monkeypatch.setattr(f"daemon.server.{name}", noting(name, kind))
    asked = {
        "threads": 2,
        "device": "auto",
        "max_batch": 7,
        "max_queue": 33,
        "inference_threads": 3,
        "keep_versions": 5,
    }
    with serving(tmp_path, **asked, watch_swap="7s", drain_limit="8s"):
        threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("inference")}
    assert made["OrtLoader"] | {"threads": 2, "batch": 7, "device": "auto"} == made["OrtLoader"]
    assert made["Batcher"] | {"max_batch": 7, "max_queue": 33} == made["Batcher"]
    assert made["SwapJudge"]["watch"] == 7
    assert made["Manager"] | {"keep": 5, "drain_limit": timedelta(seconds=8)} == made["Manager"]
    assert threads == {"inference", "inference-2", "inference-3"}


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config.model_validate(settings(tmp_path, port=port))
        with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(config, threading.Event())


def test_sigterm_ends_readiness_then_finishes_what_is_in_flight_and_exits_0(
    tmp_path: Path, registry: FileRegistry
) -> None:
    add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    program = "import json, sys; from daemon.config import Config; from daemon.server import run_server; "
    program += "raise SystemExit(run_server(Config.model_validate(json.loads(sys.argv[1]))))"
    config = json.dumps(settings(tmp_path, drain_delay="800ms"))
    process = subprocess.Popen([sys.executable, "-c", program, config], stderr=subprocess.DEVNULL)
    try:
        url = httpx.URL(address(tmp_path))
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            with connected(url) as slow:
                slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n" + b'{"text":')
                process.send_signal(signal.SIGTERM)
                until(lambda: client.get("/readyz").status_code == 503)
                assert client.post("/predict", json={"text": "good"}).status_code == 200
                time.sleep(0.4)
                assert httpx.get(url.join("/livez"), timeout=PATIENCE).status_code == 200, "new connections too"
                until(lambda: refused(url))
                slow.sendall(b' "good"}')
                assert read_all(slow).startswith(b"HTTP/1.1 200")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("loop_limit", "counted"), [(120.0, 0), (0.0, 1)])
def test_a_load_that_a_stop_cuts_off_counts_as_one_that_ended_the_process_only_if_the_server_was_stuck(
    tmp_path: Path, registry: FileRegistry, monkeypatch: pytest.MonkeyPatch, loop_limit: float, counted: int
) -> None:
    monkeypatch.setattr("daemon.server._LOOP_LIMIT", loop_limit)
    version = add_version(registry, tmp_path / "r1", seed=1)
    promote(registry, 1)
    begun, go = threading.Event(), threading.Event()

    def hangs(*_: object) -> Loaded:
        begun.set()
        go.wait(PATIENCE)
        raise UnavailableError("no room")

    monkeypatch.setattr(OrtLoader, "load_warm", hangs)
    unended = lambda: LastGoodFile(tmp_path / "state.json").unended(version, generation=1)  # noqa: E731
    stop, config = threading.Event(), Config.model_validate(settings(tmp_path))
    thread = threading.Thread(target=serve, args=(config, stop))
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        assert unended() == 1
        assert address(tmp_path)
        stop.set()
        until(lambda: "http" not in {each.name for each in threading.enumerate()})
        assert unended() == counted
    finally:
        stop.set()
        go.set()
        thread.join(PATIENCE)


def refused(url: httpx.URL) -> bool:
    try:
        connected(url).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_server_loads_neither_torch_nor_what_only_the_learner_needs() -> None:
    program = "import sys, daemon.server; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in loaded
    kept_out = {
        "torch",
        "transformers",
        "peft",
        "duckdb",
        "kafka",
        "evidently",
        "onnx",
        "pandas",
        "pyarrow",
        "apscheduler",
    }
    assert not kept_out & set(loaded)
