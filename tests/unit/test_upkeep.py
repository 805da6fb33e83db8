"""Room on the disk, and what the learner does for its store in quiet moments."""

import errno
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self, cast

import pytest

from daemon.core.errors import ConfigError, StoreError
from daemon.core.states import RunState
from daemon.core.types import Run
from daemon.core.upkeep import Expired, Keeper, Retention
from daemon.runtime.disk import Limits, device_of, free_share, refuse_network
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import ManualClock
from daemon.testing.store import InMemoryStore
from daemon.upkeep.disk_watch import LARGE_LOG, DiskWatch
from daemon.upkeep.housekeeping import EVERY, SOON, Housekeeping
from daemon.upkeep.room_for_runs import RoomForRuns

LIMITS = Limits(scarce=0.20, no_training=0.10, no_ingest=0.05)
NOTHING = Expired(0, 0, 0, 0, 0, runs=[], more=False)
RETENTION = Retention(timedelta(days=10), None, timedelta(days=1), timedelta(days=1))


class Disk:
    """A disk that is as full as a test says, and another one with room on which runs lie."""

    def __init__(self, folder: Path, runs: Path = Path("/elsewhere")) -> None:
        self.free = 0.5
        self.elsewhere = 0.5
        self.told: tuple[str, str] = ("", "")
        self.metrics = LearnerMetrics()
        self.watch = DiskWatch(
            folder / "store.duckdb",
            {"registry": folder / "registry", "runs": runs},
            LIMITS,
            self.metrics,
            self._tell,
            free=lambda path: self.elsewhere if path == Path("/elsewhere") else self.free,
            device=lambda path: int(path == Path("/elsewhere")),
        )

    def _tell(self, state: str, detail: str) -> None:
        self.told = (state, detail)

    def at(self, free: float) -> tuple[bool, bool]:
        """Whether training stops and whether ingest does."""
        self.free = free
        self.watch.look()
        return self.watch.stops_training, self.watch.stops_ingest


def test_one_thing_after_the_other_stops_as_the_disk_fills_and_goes_on_with_room_to_spare(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    assert (disk.at(0.50), disk.told[0]) == ((False, False), "ok")
    assert (disk.at(0.19), disk.told[0]) == ((False, False), "degraded")
    assert disk.at(0.09) == (True, False)
    assert disk.at(0.04) == (True, True)
    assert "no ingest" in disk.told[1]
    assert disk.at(0.055) == (True, True), "not yet: it would stop again at once"
    assert disk.at(0.07) == (True, False)
    assert disk.at(0.105) == (True, False)
    assert disk.at(0.12) == (False, False)
    assert (disk.at(0.50), disk.told[0]) == ((False, False), "ok")


def test_a_full_disk_of_runs_stops_training_and_not_ingest(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.elsewhere = 0.01
    assert (disk.at(0.50), disk.told) == ((True, False), ("degraded", "runs: 1.0% free, no new runs"))
    disk.elsewhere = 0.50
    assert (disk.at(0.19), disk.told) == (
        (False, False),
        ("degraded", "store, registry: 19.0% free, free some space"),
    )
    free = {
        name: disk.metrics.registry.get_sample_value("relearnd_disk_free_ratio", {"folder": name})
        for name in ("store", "registry", "runs")
    }
    assert free == {"store": 0.19, "registry": 0.19, "runs": 0.50}


def test_a_run_cannot_go_on_below_the_mark_and_on_no_guess(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.at(0.101)
    assert disk.watch.lack == ""
    disk.elsewhere = 0.02
    disk.at(0.099)
    assert disk.watch.lack == (
        "9.9% free on the disk of store, registry, less than store.disk.stop_training_below (10%); "
        "2.0% free on the disk of runs, less than store.disk.stop_training_below (10%)"
    )
    disk.elsewhere = 0.50
    assert disk.at(0.105) == (True, False), "none is begun yet"
    assert disk.watch.lack == "", "but one that is still there may go on"

    def gone(_: Path) -> float:
        raise OSError(errno.ESTALE, "Stale file handle")

    disk.watch._free = gone
    assert disk.at(0.0) == (True, True)
    assert disk.watch.lack == "", "a disk that does not answer for a moment costs no run of hours"


class Runs:
    """A store with a run, and what becomes of it."""

    def __init__(self) -> None:
        self.store, self.clock = InMemoryStore(), ManualClock()
        self.lack = ""
        self.cancelled: list[str] = []
        self.room = RoomForRuns(
            self.store,
            self.clock,
            lack=lambda: self.lack,
            cancel_run=lambda run_id, why: self.cancelled.append(f"{run_id}: {why}"),
            policy_hash=lambda: "hash",
        )

    def save(self, number: int, state: RunState) -> None:
        created = self.clock.advance(timedelta(seconds=1))
        self.store.save_run(Run(f"run-{number}", state, created, ["drift"], parent=1, data_cut=9))

    def decisions(self) -> list[tuple[str, str, str | None, Sequence[str], bool]]:
        return [
            (each.decision.action, each.decision.by, each.decision.run_id, each.decision.reasons, bool(each.acted_at))
            for each in self.store.decisions(9)
        ]


def test_a_run_is_cancelled_once_by_one_decision() -> None:
    runs = Runs()
    runs.save(1, RunState.TRAINING)
    runs.room.look()
    assert (runs.cancelled, runs.decisions()) == ([], [])
    runs.lack = "9% free"
    runs.room.look()
    runs.room.look()
    assert runs.cancelled == ["run-1: 9% free"]
    first = ("cancel", "disk", "run-1", ["disk: 9% free"], True)
    assert runs.decisions() == [first]
    runs.save(1, RunState.CANCELLED)
    runs.room.look()
    assert runs.decisions() == [first]
    runs.save(2, RunState.TRAINING)
    runs.room.look()
    assert runs.decisions() == [("cancel", "disk", "run-2", ["disk: 9% free"], True), first]


def test_a_run_that_is_judged_already_is_left_to_end() -> None:
    runs = Runs()
    runs.lack = "9% free"
    runs.room.look()
    runs.save(1, RunState.JUDGING)
    runs.room.look()
    assert (runs.cancelled, runs.decisions()) == ([], [])


def test_a_run_is_cancelled_although_the_disk_has_no_room_to_say_so() -> None:
    def fails(_: object) -> int:
        raise StoreError("the store failed: No space left on device")

    runs = Runs()
    runs.save(1, RunState.TRAINING)
    runs.lack = "0% free"
    runs.store.record = fails  # type: ignore[method-assign]
    runs.room.look()
    assert runs.cancelled == ["run-1: 0% free"]
    del runs.store.record
    runs.room.look()
    assert len(runs.decisions()) == 1


def test_a_disk_that_cannot_be_looked_at_stops_training_and_not_the_learner(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    def gone(path: Path) -> float:
        if path == Path("/elsewhere"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return 0.5

    disk.watch._free = disk.watch._device = gone  # type: ignore[assignment]
    assert disk.at(0.5) == (True, False)
    assert disk.told == ("degraded", "runs: 0.0% free (Stale file handle), no new runs")
    disk.watch._free, disk.watch._device = lambda path: 0.5, lambda path: 0
    assert (disk.at(0.5), disk.told[0]) == ((False, False), "ok")


def test_room_is_that_above_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    missing = tmp_path / "runs" / "later"
    assert device_of(missing) == tmp_path.stat().st_dev
    assert 0 < free_share(missing) < 1


def test_a_write_ahead_log_that_grows_is_told(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with (tmp_path / "store.duckdb.wal").open("wb") as file:
        file.truncate(LARGE_LOG + 1)
    disk.at(0.5)
    assert disk.told[0] == "degraded"
    assert "write-ahead log" in disk.told[1]


@pytest.mark.parametrize(
    ("mounts", "refused"),
    [
        ("1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {0} rw - nfs4 host:/x rw\n", True),
        ("1 0 8:1 / / rw - nfs4 host:/x rw\n2 1 8:1 / {0} rw - ext4 /dev/sda rw\n", False),
        ("1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {0} rw - fuse.sshfs host:/x rw\n", True),
        ("1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {0}-other rw - nfs4 host:/x rw\n", False),
        ("", False),
    ],
)
def test_a_store_on_a_network_file_system_is_refused(tmp_path: Path, mounts: str, refused: bool) -> None:
    folder = tmp_path / "data"
    (tmp_path / "mounts").write_text(mounts.format(folder))
    if not refused:
        refuse_network(folder / "store.duckdb", tmp_path / "mounts")
        return
    with pytest.raises(ConfigError, match=r"store\.allow_network"):
        refuse_network(folder / "store.duckdb", tmp_path / "mounts")


class House:
    """A keeper whose passes are scripted, and what was told of them."""

    def __init__(self, *passes: Expired) -> None:
        self.passes, self.clock, self.metrics = list(passes), ManualClock(), LearnerMetrics()
        self.done = self.finished = 0
        self.broken: Exception | None = None
        self.seconds = 0.0
        self.ingested: datetime | None = None
        self.sent: datetime | None = None
        self.asked_about: list[str] = []
        self.told: list[str] = []

    def open(self) -> Self:
        self.keeping = Housekeeping(
            cast(Keeper, self),
            RETENTION,
            self.clock,
            self.metrics,
            monotonic=lambda: self.seconds,
            aliases_of_run=self._aliases,
            finish_erasures=self._finish,
            tell=lambda state, _: self.told.append(state),
        )
        return self

    def passes_after(self, seconds: float, *, leap: timedelta = timedelta(0)) -> int:
        """Passes of retention done so far, once so much time is gone and the clock has leapt besides."""
        self.seconds += seconds
        self.clock.advance(timedelta(seconds=seconds) + leap)
        self.keeping.in_a_quiet_moment()
        return self.done

    def newest_ingested(self, at: datetime) -> datetime | None:
        return self.ingested

    def newest_sent(self, at: datetime) -> datetime | None:
        return self.sent

    def expire(self, retention: Retention, _: object) -> Expired:
        assert retention == RETENTION
        self.done += 1
        return self.passes.pop(0) if self.passes else NOTHING

    def _aliases(self, run: str) -> Sequence[str]:
        self.asked_about.append(run)
        return ["champion"]

    def _finish(self) -> None:
        if self.broken:
            raise self.broken
        self.finished += 1


def test_passes_come_once_a_minute_and_at_once_while_there_is_more_to_do() -> None:
    house = House(replace(NOTHING, examples=7, runs=["run-1"], more=True)).open()
    assert house.passes_after(0) == 1
    assert house.passes_after(0) == 1
    assert house.passes_after(SOON) == 2
    assert house.passes_after(SOON) == 2
    assert house.passes_after(EVERY) == 3
    assert house.asked_about == ["run-1"]
    assert house.metrics.registry.get_sample_value("relearnd_expired_total", {"kind": "examples"}) == 7


def test_passes_go_on_when_the_clock_goes_back() -> None:
    house = House().open()
    house.passes_after(0)
    assert house.passes_after(EVERY, leap=timedelta(days=-365)) == 2


def test_a_clock_that_leaps_deletes_nothing_until_kafka_agrees() -> None:
    house = House().open()
    assert house.passes_after(EVERY, leap=timedelta(hours=12)) == 1, "what it could delete too early is little"
    assert house.passes_after(EVERY, leap=timedelta(days=50)) == 1
    assert house.passes_after(EVERY) == 1
    assert house.told == ["ok", "degraded", "degraded"]
    house.sent = house.clock() - timedelta(minutes=5)
    assert house.passes_after(EVERY) == 2
    house.sent = None
    assert house.passes_after(EVERY) == 3, "what was known once is known for good"


def test_a_clock_that_was_wrong_before_the_start_is_known_by_what_was_stored_before() -> None:
    house = House()
    house.ingested = house.clock() - timedelta(days=365)
    house.open()
    house.ingested = house.clock()
    assert house.passes_after(EVERY) == 0, "what was taken in since bears the same clock's time"
    assert house.told == ["degraded"]


@pytest.mark.parametrize("failure", [StoreError("no room"), OSError(errno.EROFS, "Read-only file system")])
def test_an_erasure_that_cannot_be_finished_now_is_tried_again(failure: Exception) -> None:
    house = House().open()
    house.broken = failure
    house.passes_after(0)
    house.broken = None
    house.passes_after(EVERY)
    assert (house.told, house.finished) == (["degraded", "ok"], 1)
