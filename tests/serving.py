"""A real server as a process of its own, and the tiny model in its registry: for tests that are its clients."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from daemon.registry.file_registry import FileRegistry
from tests.artefacts import MODEL, add_version, promote

PATIENCE = 20.0  # seconds for what should take milliseconds

_PROGRAM = """
import json, sys
from daemon.config import Config
from daemon.runtime.telemetry import configure_logging
from daemon.core.errors import RelearndError
from daemon.server import run_server
config = Config.model_validate(json.loads(sys.argv[1]))
configure_logging(level="debug", format=config.log.format)
try:
    raise SystemExit(run_server(config))
except RelearndError as error:
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""


@dataclass(frozen=True)
class Running:
    """`grpc` is host:port, empty without gRPC; `log` is what the server writes."""

    process: subprocess.Popen[bytes]
    url: str
    grpc: str
    log: Path

    @property
    def host(self) -> str:
        return httpx.URL(self.url).netloc.decode()


def settings(folder: Path, *, kafka: dict[str, Any] | None = None, log: str = "json", **server: Any) -> dict[str, Any]:
    quick = {"port": 0, "ready_file": str(folder / "ready"), "poll_every": "20ms", "state": str(folder / "state")}
    return {
        "model": MODEL,
        "kafka": kafka or {},
        "registry": {"path": str(folder / "registry")},
        "server": {**quick, **server},
        "log": {"format": log},
    }


def with_champion(folder: Path, *seeds: int) -> FileRegistry:
    """A registry whose last version is champion."""
    registry = FileRegistry.open_for_writing(folder / "registry")
    for number, seed in enumerate(seeds or (1,), 1):
        add_version(registry, folder / f"run-{number}", seed=seed)
        promote(registry, number)
    return registry


def started(folder: Path, config: dict[str, Any], *, first: str = "") -> subprocess.Popen[bytes]:
    """`first` is a line of Python that runs before anything of ours is imported."""
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", first + _PROGRAM, json.dumps(config)], stderr=log, stdout=log)


@contextmanager
def running(
    folder: Path, *, verify: Any = True, cert: Any = None, first: str = "", **changes: Any
) -> Iterator[Running]:
    """Ready to answer; stopped with SIGTERM, which must end with 0. `verify` and `cert` as httpx takes them, `first` as above."""
    process = started(folder, settings(folder, **changes), first=first)
    try:
        url, grpc = _addresses(folder, process)
        with httpx.Client(base_url=url, verify=verify, cert=cert) as client:
            deadline = time.monotonic() + PATIENCE
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.02)
        yield Running(process, url, grpc, folder / "log")
        process.terminate()
        assert process.wait(PATIENCE) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def _addresses(folder: Path, process: subprocess.Popen[bytes]) -> tuple[str, str]:
    ready, deadline = folder / "ready", time.monotonic() + PATIENCE
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
    url, *grpc = ready.read_text().splitlines()
    return url, grpc[0] if grpc else ""
