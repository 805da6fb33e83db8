"""What this server says of itself in the registry, for the learner. Where it may not write there, it serves all the same."""

import re
import uuid
from collections.abc import Callable
from dataclasses import replace

import structlog

from daemon.core.errors import UnavailableError
from daemon.core.ports import Clock, Registry
from daemon.core.types import REPORT_EVERY, Refusal, ServerReport
from daemon.serve.manager import ServingStatus
from daemon.serve.transitions import MOST_FAILURES

log = structlog.get_logger(__name__)

_LONGEST_HOST = 64  # characters


class Reporter:
    """Used by the manager's thread; `withdraw` once that has ended."""

    def __init__(self, server: str, registry: Registry, clock: Clock, monotonic: Callable[[], float]) -> None:
        self._server = server
        self._registry = registry
        self._clock = clock
        self._monotonic = monotonic
        self._told: ServerReport | None = None
        self._due = 0.0
        self._refused_before = False  # by the registry: said once

    def tell(self, status: ServingStatus) -> None:
        """Write the report if it says something new, or is to be renewed."""
        report = report_of(self._server, status, self._clock)
        if self._told and replace(report, at=self._told.at) == self._told and self._monotonic() < self._due:
            return
        self._told, self._due = report, self._monotonic() + REPORT_EVERY.total_seconds()
        try:
            self._registry.report(report)
            self._refused_before = False
        except UnavailableError as error:
            if not self._refused_before:
                log.info(
                    f"the learner is not told what this server makes of its versions: {error}", action="not_reported"
                )
            self._refused_before = True

    def withdraw(self) -> None:
        self._registry.withdraw(self._server)


def name_of(host: str, port: int) -> str:
    """Another one after each start. Hosts may have names that the registry does not take."""
    plain = re.sub("[^A-Za-z0-9._-]", "-", host).strip("._-")
    return f"{plain[:_LONGEST_HOST] or 'server'}-{port}-{uuid.uuid4().hex[:8]}"


def report_of(server: str, status: ServingStatus, clock: Clock) -> ServerReport:
    """A version that is still being tried again is not refused yet."""
    refused = [
        Refusal(version.number, version.error)
        for version in status.versions
        if version.error and version.failures >= MOST_FAILURES
    ]
    return ServerReport(server, status.model, clock(), status.served, status.generation, refused)
