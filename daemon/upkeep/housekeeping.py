"""What the store needs in quiet moments: retention in short passes, and erasures that a stop or a full disk interrupted."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from daemon.core.errors import RelearndError
from daemon.core.ports import Clock
from daemon.core.upkeep import Keeper, Retention
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

EVERY = timedelta(minutes=1)
SOON = timedelta(seconds=1)  # when a pass has left something to do


class Housekeeping:
    """Called by one thread, whenever it has nothing better to do. What fails is told and tried again."""

    def __init__(
        self,
        keeper: Keeper,
        retention: Retention,
        clock: Clock,
        metrics: LearnerMetrics,
        *,
        aliases_of_run: Callable[[str], Sequence[str]],
        finish_erasures: Callable[[], None],
        tell: Callable[[str, str], None],
    ) -> None:
        """`aliases_of_run`: of the version that a run made. `tell` hears a state, "ok" or "degraded", and a sentence."""
        self._keeper = keeper
        self._retention = retention
        self._clock = clock
        self._metrics = metrics
        self._aliases_of_run = aliases_of_run
        self._finish_erasures = finish_erasures
        self._tell = tell
        self._next: datetime | None = None

    def in_a_quiet_moment(self) -> None:
        now = self._clock()
        if self._next is not None and now < self._next:
            return
        self._next = now + EVERY
        try:
            self._finish_erasures()
            if self._expire(now):
                self._next = now + SOON
            self._tell("ok", "")
        except RelearndError as error:
            log.warning(f"housekeeping failed and is tried again: {error}", action="housekeeping_failed")
            self._tell("degraded", str(error))

    def _expire(self, now: datetime) -> bool:
        """One pass; whether there is more to do."""
        expired = self._keeper.expire(self._retention, now)
        for kind in ("examples", "dead_letters", "quarantined", "halves"):
            self._metrics.expired.labels(kind).inc(getattr(expired, kind))
        in_use = {run: list(aliases) for run in expired.runs if (aliases := self._aliases_of_run(run))}
        if in_use:
            log.warning(
                f"examples expired that versions in use were trained on: {in_use}; their data is marked expired",
                action="data_expired",
                runs=list(in_use),
            )
        return expired.more
