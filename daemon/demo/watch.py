"""Looks at the learner twice a second, as any operator's tool would: through its control API."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from daemon.control.client import ControlClient
from daemon.core.errors import RelearndError, UnavailableError
from daemon.demo.readings import Decided, Status, decisions, status

EVERY_SECONDS = 0.5
DECISIONS_LOOKED_AT = 50


class Witness(Protocol):
    def observed(self, status: Status, decisions: Sequence[Decided]) -> None: ...


class Door(Protocol):
    def look(self) -> bool: ...


class Watch:
    """`started` is the start of the demo in Unix seconds."""

    def __init__(self, socket: Path, *, started: float) -> None:
        self._client = ControlClient(socket, timeout=10.0)
        self._started = started

    def run(self, witness: Witness, door: Door, stop: threading.Event) -> None:
        """Until the stop: what the learner says to `witness`; and knock at the server's door until it is ready."""
        while not stop.wait(EVERY_SECONDS):
            door.look()
            try:
                seen = status(self._client.get("/v1/status"))
                newest = self._client.get("/v1/decisions", limit=DECISIONS_LOOKED_AT)
            except UnavailableError:
                continue  # not there yet, or busy; whether its process lives is looked at elsewhere
            witness.observed(seen, decisions(newest, started=self._started))

    def coverage(self) -> dict[str, Any] | None:
        """Where every offset ended: core.types.Coverage as JSON; None when the learner does not answer."""
        try:
            found: dict[str, Any] = self._client.get("/v1/coverage")
        except UnavailableError:
            return None
        return found

    def last_run_error(self) -> str:
        """Why the newest run failed; empty when it did not, or nobody can say."""
        try:
            runs = self._client.get("/v1/runs", limit=1).get("runs") or [{}]
        except RelearndError:
            return ""
        return str(runs[0].get("detail") or "") if runs[0].get("state") == "failed" else ""

    def close(self) -> None:
        self._client.close()
