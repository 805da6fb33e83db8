"""`make bench-restart`: kill -9 of a server with a real MiniLM, again and again, until it answers rightly again.

Restarted by the supervisor's own code, each time with the backoff of a server that had lived for a while.
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import httpx

from daemon.core.types import Aliases
from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import OrtLoader
from daemon.supervisor import FIRST_BACKOFF, POLL, Child
from tests.benchmarks import minilm, report
from tests.benchmarks.minilm import MODEL

PATIENCE = 60.0
TEXT = "where is my parcel?"


def measure(kills: int, folder: Path) -> list[float]:
    """Seconds from each SIGKILL to the first right answer."""
    registry = FileRegistry.open_for_writing(folder / "registry")
    version, _ = minilm.add_version(registry, folder / "run", minilm.bases()["whole"], seed=1)
    registry.move(MODEL, Aliases(champion=version.number))
    [expected] = OrtLoader(registry, threads=1).load(version).predict([TEXT])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = {"port": port, "state": str(folder / "state.json")}
    config = {
        "model": MODEL,
        "registry": {"path": str(folder / "registry")},
        "server": server,
        "log": {"level": "error"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    child = Child("serve", [sys.executable, "-m", "daemon", "serve", "--config", str(folder / "config.yaml")])
    child.start()
    try:
        _until_answered(child, port, expected.label)
        return [_kill(child, port, expected.label) for _ in range(kills)]
    finally:
        child.stop()


def _kill(child: Child, port: int, label: str) -> float:
    assert child.process is not None
    child.backoff = FIRST_BACKOFF
    started = time.monotonic()
    os.kill(child.process.pid, signal.SIGKILL)
    _until_answered(child, port, label)
    return time.monotonic() - started


def _until_answered(child: Child, port: int, label: str) -> None:
    """What the supervisor does, and a client that asks as often."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        code = child.ended()
        if code is not None:
            child.plan_restart(code)
        if child.process is None and time.monotonic() >= child.start_at:
            child.start()
        if child.process is not None and _answer(port) == label:
            return
        time.sleep(POLL / 5)
    raise AssertionError("it does not answer again")


def _answer(port: int) -> str | None:
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", json={"text": TEXT}, timeout=5)
    except httpx.TransportError:
        return None
    return str(answer.json()["label"]) if answer.status_code == 200 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory(prefix="relearnd-bench-") as folder:
        seconds = measure(kills, Path(folder))
    p50, p95 = (report.percentile(seconds, share) for share in (0.5, 0.95))
    figures = {
        "kills": kills,
        "seconds_p50": p50,
        "seconds_p95": p95,
        "seconds_max": max(seconds),
        "backoff": FIRST_BACKOFF,
    }
    report.write("restart", ratios={}, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
