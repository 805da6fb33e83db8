"""What the store needs in quiet moments: retention in short passes, and erasures that a stop or a full disk interrupted."""

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from daemon.core.errors import RelearndError, StoreError
from daemon.core.ports import Clock
from daemon.core.upkeep import Keeper, Retention
from daemon.runtime.telemetry import LearnerMetrics
from daemon.upkeep.clock_watch import ClockWatch

log = structlog.get_logger(__name__)

EVERY = 60.0  # seconds
SOON = 1.0  # seconds, when a pass has left something to do
TOO_EARLY = 10  # a clock may be ahead by this part of what things are kept for: so much too early they may go


class Housekeeping:
    """Called by one thread, again and again. What fails is told and tried again."""

    def __init__(
        self,
        keeper: Keeper,
        retention: Retention,
        clock: Clock,
        metrics: LearnerMetrics,
        *,
        monotonic: Callable[[], float],
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
        self._monotonic = monotonic
        self._watch = ClockWatch(keeper, clock(), monotonic)
        self._next = monotonic()

    def in_a_quiet_moment(self) -> None:
        if self._monotonic() < self._next:
            return
        self._next = self._monotonic() + EVERY
        try:
            self._finish_erasures()
            if self._expire(self._clock()):
                self._next = self._monotonic() + SOON
            self._tell("ok", "")
        except (RelearndError, OSError) as error:
            log.warning(f"housekeeping failed and is tried again: {error}", action="housekeeping_failed")
            self._tell("degraded", str(error))

    def _expire(self, now: datetime) -> bool:
        """One pass; whether there is more to do."""
        self._refuse_a_leap(now)
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

    def _refuse_a_leap(self, now: datetime) -> None:
        """Raises StoreError while the clock may be so wrong that things would go long before their time."""
        keep_for, ahead = self._retention.keep_for, self._watch.ahead(now)
        if keep_for is not None and ahead > keep_for / TOO_EARLY:
            raise StoreError(
                f"nothing expires: the clock says {now:%Y-%m-%d %H:%M}, {ahead} later than the newest record and the time since "
                "the start explain; set the clock, or, if it is right, wait for the next record from Kafka"
            )
