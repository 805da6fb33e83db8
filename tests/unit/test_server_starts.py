"""A server that starts, or stops, while something is wrong."""

import errno
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.core.errors import ArtefactError
from daemon.serve.last_good import LastGoodFile
from daemon.serve.transitions import MOST_FAILURES
from daemon.testing.registry import InMemoryRegistry
from tests.artefacts import MODEL, NOON, paper_run
from tests.managing import Bench, Unreadable


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_damaged_champion_at_start_is_replaced_by_the_last_good_version_and_it_says_so(bench: Bench) -> None:
    bench.add(3)
    for champion in (1, 2):
        bench.promote(champion)
        bench.refresh()
        bench.watched()
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), champion=3, previous=1))
    bench.broken[3] = ArtefactError("sha256 differs")
    bench.router.publish(None, {})
    bench.start()
    for _ in range(2):
        status = bench.refresh()
    assert status.served == 2, "the last good one, not the previous alias"
    assert status.degraded_because == "champion 3 is not served: sha256 differs; version 2 answers"
    bench.broken.clear()
    bench.promote(3)
    assert bench.refresh().served == 3


def test_without_a_last_good_version_the_previous_one_steps_in(bench: Bench) -> None:
    bench.add(2)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), champion=2, previous=1))
    bench.broken[2] = ArtefactError("damaged")
    for _ in range(2):
        status = bench.refresh()
    assert status.served == 1


def test_a_champion_that_is_only_slow_to_load_is_waited_for(bench: Bench) -> None:
    bench.add(2)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), champion=2, previous=1))
    bench.refresh()
    assert bench.loads[0] == 2 and [swap.after for swap in bench.manager.status().swaps] == [2]


class Killed(BaseException):
    """The process ends."""


def killed_at_load(bench: Bench) -> None:
    """A start that dies as by SIGKILL while it loads: nothing is cleaned up."""
    bench.start()
    at_death: list[bytes] = []

    def die() -> None:
        if bench.loads[-1] == 2:
            at_death.append(bench.state.read_bytes())
            raise Killed

    bench.during_load = die
    with suppress(Killed):
        bench.refresh()
    if at_death:
        bench.state.write_bytes(at_death[0])
    bench.router.publish(None, {})


def test_a_champion_whose_load_ends_the_process_again_and_again_is_left_alone_for_the_last_good_one(
    bench: Bench,
) -> None:
    bench.settle(1)
    bench.add(1)
    bench.promote(2)
    for _ in range(4):
        killed_at_load(bench)
    assert bench.loads.count(2) == 2
    bench.start()
    for _ in range(MOST_FAILURES + 1):
        status = bench.refresh()
    assert status.served == 1
    assert status.degraded_because and "has ended this process 2 times" in status.degraded_because
    bench.during_load = lambda: None
    bench.promote(2)
    assert bench.refresh().served == 2, "moving the aliases is a new chance"


def test_a_stop_in_the_middle_of_a_load_speaks_against_no_version_and_begins_no_other(bench: Bench) -> None:
    bench.keep = 3
    bench.add(3)
    bench.promote(1)
    bench.start()
    left: list[int] = []

    def stopped() -> None:
        if bench.loads[-1] == 3:
            bench.manager.leave()
            left.append(LastGoodFile(bench.state).unended(bench.registry.version(MODEL, 3), generation=1))

    bench.during_load = stopped
    bench.refresh()
    assert left == [0]
    assert bench.loads == [1, 3], "2 would have been next"


def test_what_a_server_meets_while_it_stops_is_told_to_nobody(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    stop, told = threading.Event(), []
    bench.during_load = stop.set
    bench.manager.run(stop, lambda: None, poll_every=timedelta(0), tell=told.append)
    assert (bench.loads, told) == ([1], [])


def test_a_champion_that_nobody_can_stand_in_for_is_tried_however_often_it_ended_the_process(bench: Bench) -> None:
    bench.add(2)
    bench.promote(2)
    for _ in range(4):
        killed_at_load(bench)
    assert bench.loads.count(2) == 4
    bench.during_load = lambda: None
    bench.start()
    assert bench.refresh().served == 2


def test_an_unreadable_registry_at_start_is_served_from_what_is_remembered_until_it_can_be_read(bench: Bench) -> None:
    bench.settle(2)
    registry, bench.registry = bench.registry, Unreadable()  # type: ignore[assignment]
    bench.router.publish(None, {})
    bench.start()
    status = bench.refresh()
    assert (status.served, status.champion) == (1, None)
    assert status.degraded_because and "cannot be read" in status.degraded_because
    bench.manager._registry = registry
    bench.promote_in(registry, 2)
    assert bench.refresh().served == 2


def test_a_version_of_another_registry_with_the_same_number_does_not_step_in(bench: Bench) -> None:
    bench.settle(2)
    bench.registry = InMemoryRegistry()
    for run in ("other-1", "other-2"):
        other = paper_run(Path(run))
        bench.registry.add(other.spec, other.result, other.folder, lineage=other.lineage, created_at=NOON)
    bench.router.publish(None, {})
    bench.broken[2] = ArtefactError("damaged")
    bench.start()
    bench.promote(2)
    for _ in range(3):
        status = bench.refresh()
    assert status.served is None and "cannot be loaded" in (status.waiting_for or "")


def test_an_empty_registry_is_not_served_from_memory(bench: Bench) -> None:
    bench.settle(1)
    bench.registry = InMemoryRegistry()
    bench.router.publish(None, {})
    bench.start()
    assert bench.refresh().waiting_for == "model 'tweets' has no champion yet"


def test_a_memory_that_cannot_be_read_for_a_moment_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.settle(2)

    def fails(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as for_a_moment:
        for_a_moment.setattr(Path, "read_bytes", fails)
        bench.add(1)
        bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), shadow=3))
        bench.refresh()
    assert bench.loads[-1] == 3
    remembered = LastGoodFile(bench.state).read(MODEL)
    assert remembered is not None and remembered.digest == bench.registry.version(MODEL, 1).digest


def test_a_damaged_memory_is_started_anew(bench: Bench) -> None:
    bench.state.write_bytes(b"\x00{")
    bench.start()
    bench.settle(1)
    remembered = LastGoodFile(bench.state).read(MODEL)
    assert remembered is not None and remembered.digest == bench.registry.version(MODEL, 1).digest
    assert LastGoodFile(bench.state).read("another") is None
