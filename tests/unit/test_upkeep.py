"""Room on the disk, and what the learner does for its store in quiet moments."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from daemon.core.errors import ConfigError, StoreError
from daemon.core.upkeep import Expired, Keeper, Retention
from daemon.runtime.disk import Limits, refuse_network
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import ManualClock
from daemon.upkeep.disk_watch import LARGE_LOG, DiskWatch
from daemon.upkeep.housekeeping import EVERY, SOON, Housekeeping

LIMITS = Limits(scarce=0.20, no_training=0.10, no_ingest=0.05)
NOTHING = Expired(0, 0, 0, 0, 0, runs=[], more=False)
RETENTION = Retention(timedelta(days=1), None, timedelta(days=1))


class Disk:
    """A disk that is as full as a test says."""

    def __init__(self, folder: Path) -> None:
        self.free = 0.5
        self.told: tuple[str, str] = ("", "")
        self.watch = DiskWatch(folder / "store.duckdb", LIMITS, LearnerMetrics(), self._tell, free=lambda _: self.free)

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
        self.broken = False
        self.asked_about: list[str] = []
        self.told: list[str] = []
        self.keeping = Housekeeping(
            cast(Keeper, self),
            RETENTION,
            self.clock,
            self.metrics,
            aliases_of_run=self._aliases,
            finish_erasures=self._finish,
            tell=lambda state, _: self.told.append(state),
        )

    def expire(self, retention: Retention, _: object) -> Expired:
        assert retention == RETENTION
        self.done += 1
        return self.passes.pop(0) if self.passes else NOTHING

    def _aliases(self, run: str) -> Sequence[str]:
        self.asked_about.append(run)
        return ["champion"]

    def _finish(self) -> None:
        if self.broken:
            raise StoreError("no room")
        self.finished += 1


def test_passes_come_once_a_minute_and_at_once_while_there_is_more_to_do() -> None:
    house = House(replace(NOTHING, examples=7, runs=["run-1"], more=True))
    house.keeping.in_a_quiet_moment()
    house.keeping.in_a_quiet_moment()
    assert house.done == 1
    house.clock.advance(SOON)
    house.keeping.in_a_quiet_moment()
    house.clock.advance(SOON)
    house.keeping.in_a_quiet_moment()
    assert house.done == 2
    house.clock.advance(EVERY)
    house.keeping.in_a_quiet_moment()
    assert house.done == 3
    assert house.asked_about == ["run-1"]
    assert house.metrics.registry.get_sample_value("relearnd_expired_total", {"kind": "examples"}) == 7


def test_an_erasure_that_cannot_be_finished_now_is_tried_again() -> None:
    house = House()
    house.broken = True
    house.keeping.in_a_quiet_moment()
    house.broken = False
    house.clock.advance(EVERY)
    house.keeping.in_a_quiet_moment()
    assert (house.told, house.finished) == (["degraded", "ok"], 1)
