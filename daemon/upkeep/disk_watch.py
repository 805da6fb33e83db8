"""Watches the room on the disks of a learner: one thing after the other stops in time, and all goes on when there is room again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon.runtime.disk import Limits, Room, device_of, free_share, size_of
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

LARGE_LOG = 1 << 28  # bytes of write-ahead log; DuckDB checkpoints at 16 MiB when nothing keeps it from doing so
HYSTERESIS = 0.01  # so much more must be free before what has stopped goes on
STORE = "store"

_SAYS = {
    Room.NO_INGEST: "no ingest, no new runs; serving goes on",
    Room.NO_TRAINING: "no new runs",
    Room.SCARCE: "free some space",
}


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at one disk found."""

    warning: str
    lack: str


class DiskWatch:
    """`look` is called by one thread now and then; what it found may be read by any.

    Where the store has no room ingest stops; where any of the folders has none, training does. A disk that cannot be looked at,
    as one on a network may be for a while, has none.
    """

    def __init__(
        self,
        store: Path,
        others: Mapping[str, Path],
        limits: Limits,
        metrics: LearnerMetrics,
        tell: Callable[[str, str], None],
        *,
        free: Callable[[Path], float] = free_share,
        device: Callable[[Path], int] = device_of,
    ) -> None:
        """`others`: folders by name. `tell` hears a state, "ok" or "degraded", and a sentence."""
        self._store = store
        self._folders = {STORE: store.parent, **others}
        self._limits = limits
        self._metrics = metrics
        self._tell = tell
        self._free = free
        self._device = device
        self._rooms = dict.fromkeys(self._folders, Room.ENOUGH)
        self._lacks: Sequence[str] = []

    @property
    def stops_training(self) -> bool:
        return min(self._rooms.values()) <= Room.NO_TRAINING

    @property
    def lack(self) -> str:
        """Why a run that is under way cannot go on; empty where it can. A disk that could not be looked at ends none."""
        return "; ".join(self._lacks)

    @property
    def stops_ingest(self) -> bool:
        return self._rooms[STORE] <= Room.NO_INGEST

    def look(self) -> None:
        log_size = size_of(self._store.with_name(f"{self._store.name}.wal"))
        self._metrics.store_bytes.set(size_of(self._store))
        self._metrics.store_log_bytes.set(log_size)
        looks = [self._look_at(names) for names in self._disks()]
        self._lacks = [look.lack for look in looks if look.lack]
        told = [look.warning for look in looks if look.warning]
        if log_size > LARGE_LOG:
            told.append(
                f"the store's write-ahead log has {log_size:,} bytes: a long query keeps it from being written back"
            )
        self._tell("degraded" if told else "ok", "; ".join(told))

    def _disks(self) -> Iterable[Sequence[str]]:
        """The folders' names, those on one disk together."""
        disks: dict[int | str, list[str]] = {}
        for name, folder in self._folders.items():
            try:
                disk: int | str = self._device(folder)
            except OSError:
                disk = name
            disks.setdefault(disk, []).append(name)
        return disks.values()

    def _look_at(self, names: Sequence[str]) -> _Look:
        try:
            free, why = self._free(self._folders[names[0]]), ""
        except OSError as error:
            free, why = 0.0, f" ({error.strerror})"
        before = self._rooms[names[0]]
        room = self._room(before, free)
        if STORE not in names:
            room = max(room, Room.NO_TRAINING)
        for name in names:
            self._rooms[name] = room
            self._metrics.disk_free.labels(name).set(free)
        where = ", ".join(names)
        if room != before:
            level = log.warning if room < before else log.info
            level(f"{free:.1%} free{why} on the disk of {where}: {_SAYS.get(room, 'all goes on')}", action="disk_room")
        warning = "" if room is Room.ENOUGH else f"{where}: {free:.1%} free{why}, {_SAYS[room]}"
        return _Look(warning, "" if why else self._lack(where, free))

    def _lack(self, where: str, free: float) -> str:
        if free >= self._limits.no_training:
            return ""
        mark = f"store.disk.stop_training_below ({100 * self._limits.no_training:.3g}%)"
        return f"{free:.1%} free on the disk of {where}, less than {mark}"

    def _room(self, before: Room, free: float) -> Room:
        """Down at once, up only with room to spare."""
        return max(min(before, self._limits.room(free)), self._limits.room(free - HYSTERESIS))
