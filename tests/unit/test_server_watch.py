"""What the learner makes of what servers say."""

import errno
from datetime import timedelta
from pathlib import Path

from daemon.core.types import REPORT_EVERY, Aliases, Refusal, ServerReport
from daemon.testing.clock import ManualClock
from daemon.testing.registry import InMemoryRegistry
from daemon.upkeep.server_watch import KEPT_FOR, ServerWatch
from tests.artefacts import MODEL, NOON, paper_run


class Bench:
    """A registry whose champion is version 1, and a watch over its servers."""

    def __init__(self) -> None:
        self.clock, self.registry = ManualClock(), InMemoryRegistry()
        run = paper_run(Path("run-1"))
        self.registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=NOON)
        self.registry.move(MODEL, Aliases(champion=1))
        self.told: list[str] = []
        self.woken = 0
        self.watch = ServerWatch(
            self.registry, MODEL, self.clock, tell=lambda state, _: self.told.append(state), changed=self._wake
        )

    def _wake(self) -> None:
        self.woken += 1

    def say(self, server: str, *refused: int) -> None:
        refusals = [Refusal(number, "torn") for number in refused]
        self.registry.report(ServerReport(server, MODEL, self.clock(), None, 1, refusals))


def test_the_cycle_is_woken_once_for_each_server_that_refuses_the_champion() -> None:
    bench = Bench()
    for server, refused in (("a", ()), ("a", (7,)), ("a", (7, 1)), ("b", (1,))):
        bench.say(server, *refused)
        for _ in range(3):
            bench.watch.look()
    assert (bench.woken, bench.watch.refusing()) == (2, 2)
    assert bench.told == ["ok"] * 6 + ["degraded"] * 6


def test_nothing_is_degraded_any_more_when_the_server_that_refused_is_gone() -> None:
    bench = Bench()
    bench.watch.look()
    bench.say("a", 1)
    bench.watch.look()
    bench.registry.withdraw("a")
    for _ in range(2):
        bench.watch.look()
    assert bench.told == ["degraded", "ok"]


def test_a_registry_that_cannot_be_read_ends_nothing() -> None:
    def fails(_: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    bench = Bench()
    bench.registry.servers = fails  # type: ignore[method-assign, assignment]
    bench.watch.look()
    del bench.registry.servers
    bench.say("a", 1)
    bench.watch.look()
    assert bench.told == ["degraded"]


def test_a_server_that_fell_silent_counts_no_more_and_is_forgotten_in_the_end() -> None:
    bench = Bench()
    bench.say("a", 1)
    bench.clock.advance(5 * REPORT_EVERY)
    bench.watch.look()
    assert (bench.watch.reports(), bench.watch.refusing(), bench.woken) == ([], 0, 0)
    assert len(bench.registry.servers(MODEL)) == 1
    bench.clock.advance(KEPT_FOR + timedelta(seconds=1))
    bench.watch.look()
    assert bench.registry.servers(MODEL) == []
