"""Options that many commands share, and how a command reaches the learner and shows what it said."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daemon.config import Config, load_config
from daemon.runtime.child import die_with_parent
from daemon.runtime.telemetry import configure_logging

if TYPE_CHECKING:
    from daemon.control.client import ControlClient

ConfigPath = Annotated[
    Path, typer.Option("--config", "-c", envvar="RELEARND_CONFIG", help="Config file.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; stored with the decision.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, the newest first.")]
DEFAULT_CONFIG = Path("configs/dev.yaml")
PATIENCE = 30.0  # seconds
PATIENCE_WITH_FILES = 3600.0  # for what reads or writes the whole store

out = Console()


def start(path: Path) -> Config:
    """Load the config of a process, set its logs up, and stop cleanly should the supervisor be killed."""
    die_with_parent(signal.SIGTERM)
    loaded = load_config(path)
    configure_logging(level=loaded.log.level, format=loaded.log.format)
    return loaded


@contextmanager
def learner_of(path: Path, patience: float = PATIENCE) -> "Iterator[ControlClient]":
    """`patience` in seconds: how long one answer may take."""
    from daemon.control.client import ControlClient  # not for every process: httpx alone takes 7 MB

    client = ControlClient(load_config(path).control.socket, timeout=patience)
    try:
        yield client
    finally:
        client.close()


def get(path: Path, what: str, **query: Any) -> Any:
    with learner_of(path) as client:
        return client.get(what, **query)


def do(path: Path, what: str, as_json: bool, done: str, **body: Any) -> None:
    with learner_of(path) as client:
        say(client.post(what, **body), as_json, done)


def show(answer: dict[str, Any], as_json: bool, table: Callable[[dict[str, Any]], Table]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        out.print(table(answer))


def say(answer: dict[str, Any], as_json: bool, sentence: str) -> None:
    sys.stdout.write((json.dumps(answer) if as_json else sentence) + "\n")
