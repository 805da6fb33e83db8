"""Hears what servers make of the versions they are to answer with."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import structlog

from daemon.core.errors import RelearndError
from daemon.core.ports import Clock, Registry
from daemon.core.types import ServerReport
from daemon.policy.rollout import refusals

log = structlog.get_logger(__name__)

KEPT_FOR = timedelta(hours=1)  # after a server fell silent


class ServerWatch:
    """`look` is called by one thread now and then, the others by any."""

    def __init__(
        self,
        registry: Registry,
        model: str,
        clock: Clock,
        *,
        tell: Callable[[str, str], None],
        changed: Callable[[], None],
    ) -> None:
        """`tell` hears a state, "ok" or "degraded", and a sentence; `changed` is called when a champion is refused."""
        self._registry = registry
        self._model = model
        self._clock = clock
        self._tell = tell
        self._changed = changed
        self._known: set[tuple[str, int]] = set()

    def reports(self) -> Sequence[ServerReport]:
        """Of servers that were heard of lately."""
        now = self._clock()
        return [report for report in self._registry.servers(self._model) if not report.silent(now)]

    def refusing(self) -> int:
        """How many of them refuse the champion."""
        return len(refusals(self.reports(), self._registry.aliases(self._model)))

    def look(self) -> None:
        """A registry that cannot be read says nothing about servers; that it cannot is told elsewhere."""
        try:
            self._look()
        except (RelearndError, OSError):
            return

    def _look(self) -> None:
        self._withdraw_forgotten()
        reports = self.reports()
        refused = refusals(reports, self._registry.aliases(self._model))
        fresh = [each for each in refused if (each[0].server, each[1].version) not in self._known]
        known_before, self._known = self._known, {(report.server, refusal.version) for report, refusal in refused}
        if refused:
            told = "; ".join(
                f"{report.server} refuses {refusal.version}: {refusal.reason}" for report, refusal in refused
            )
            self._tell("degraded", told)
        elif reports or known_before:
            self._tell("ok", f"heard of {len(reports)}")
        for report, refusal in fresh:
            log.error(
                f"server {report.server} refuses champion {refusal.version}: {refusal.reason}",
                action="champion_refused",
                server=report.server,
                version=refusal.version,
                served=report.served,
            )
        if fresh:
            self._changed()

    def _withdraw_forgotten(self) -> None:
        before = self._clock() - KEPT_FOR
        for report in self._registry.servers(self._model):
            if report.at < before:
                self._registry.withdraw(report.server)
