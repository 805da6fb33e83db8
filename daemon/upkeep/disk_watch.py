"""Watches the room on the store's disk: one thing after the other stops in time, and all goes on when there is room again."""

from collections.abc import Callable
from pathlib import Path

import structlog

from daemon.runtime.disk import Limits, Room, free_share, size_of
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

LARGE_LOG = 1 << 28  # bytes of write-ahead log; DuckDB checkpoints at 16 MiB when nothing keeps it from doing so
HYSTERESIS = 0.01  # so much more must be free before what has stopped goes on

_SAYS = {
    Room.NO_INGEST: "no ingest, no new runs; serving goes on",
    Room.NO_TRAINING: "no new runs",
    Room.SCARCE: "free some space",
}


class DiskWatch:
    """`look` is called by one thread now and then; what it found may be read by any."""

    def __init__(
        self,
        store: Path,
        limits: Limits,
        metrics: LearnerMetrics,
        tell: Callable[[str, str], None],
        free: Callable[[Path], float] = free_share,
    ) -> None:
        """`tell` hears a state, "ok" or "degraded", and a sentence."""
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._tell = tell
        self._free = free
        self._room = Room.ENOUGH

    @property
    def stops_training(self) -> bool:
        return self._room <= Room.NO_TRAINING

    @property
    def stops_ingest(self) -> bool:
        return self._room <= Room.NO_INGEST

    def look(self) -> None:
        free = self._free(self._store.parent)
        log_size = size_of(self._store.with_name(f"{self._store.name}.wal"))
        self._metrics.disk_free.set(free)
        self._metrics.store_bytes.set(size_of(self._store))
        self._metrics.store_log_bytes.set(log_size)
        before, self._room = self._room, self._now(free)
        if self._room != before:
            level = log.warning if self._room < before else log.info
            level(f"{free:.1%} of the store's disk is free: {_SAYS.get(self._room, 'all goes on')}", action="disk_room")
        self._tell(*self._state(free, log_size))

    def _now(self, free: float) -> Room:
        """Down at once, up only with room to spare."""
        return max(min(self._room, self._limits.room(free)), self._limits.room(free - HYSTERESIS))

    def _state(self, free: float, log_size: int) -> tuple[str, str]:
        told = [f"{free:.1%} free"]
        if self._room is not Room.ENOUGH:
            told.append(_SAYS[self._room])
        if log_size > LARGE_LOG:
            told.append(
                f"the store's write-ahead log has {log_size:,} bytes: a long query keeps it from being written back"
            )
        return ("degraded" if len(told) > 1 else "ok"), "; ".join(told)
