"""Whether the clock can be right: what it says is held against what was read last and against how long we run."""

from collections.abc import Callable
from datetime import datetime, timedelta

from daemon.core.upkeep import Keeper


class ClockWatch:
    """Made before anything is taken in, for what is stored from then on bears the clock's own time."""

    def __init__(self, keeper: Keeper, now: datetime, monotonic: Callable[[], float]) -> None:
        known = [keeper.newest_ingested(now), keeper.newest_sent(now)]
        self._keeper = keeper
        self._monotonic = monotonic
        self._latest = max((time for time in known if time), default=now)
        self._looked_at = monotonic()

    def ahead(self, now: datetime) -> timedelta:
        """How much later `now` is than anything but the clock says: time without records while nobody ran, or a leap."""
        looked_at = self._monotonic()
        explained = self._latest + timedelta(seconds=looked_at - self._looked_at)
        self._latest = max(explained, self._keeper.newest_sent(now) or explained)
        self._looked_at = looked_at
        return now - self._latest
