"""The manager over a registry in memory and a loader that does as it is told: each test calls `refresh`, the thread's one pass."""

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.core.artefact import Golden
from daemon.core.errors import ArtefactError, ExpiredError, NotFoundError, OverloadedError, RelearndError
from daemon.core.states import ServableState
from daemon.core.types import Aliases, ModelVersion, Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.last_good import LastGoodFile
from daemon.serve.manager import Manager, ServingStatus
from daemon.serve.router import Loaded, Router
from daemon.serve.swap_report import GoldenProof, SwapJudge, SwapOutcome
from daemon.serve.traffic import Traffic
from daemon.serve.transitions import MOST_FAILURES
from daemon.testing.registry import InMemoryRegistry
from tests.artefacts import MODEL, NOON, paper_run

GOLDEN = Golden(["good"], [[1.0, 2.0]], 1e-3)


class Answering:
    def __init__(self, number: int) -> None:
        self.number = number

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(text)] for text in texts]

    def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
        return [Prediction(f"{self.number}", 1.0, [1.0])] * len(rows)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        return [Prediction(f"{self.number}", 1.0, [1.0])] * len(texts)


WATCH, PATIENCE = 5.0, 10.0  # seconds


class Bench:
    """`now` is the traffic's clock, in seconds; `wrong` are versions whose endpoint answers other than the judge saw, `full` those
    for whose golden texts there is no room."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.registry = InMemoryRegistry()
        self.now = 100.0
        self.router = Router(Traffic(lambda: self.now, patience=PATIENCE))
        self.wrong: set[int] = set()
        self.full: set[int] = set()
        self.unloads = 0
        self.state = folder / "state.json"
        self.metrics = ServerMetrics()
        self.broken: dict[int, Exception] = {}
        self.loads: list[int] = []
        self.proved: list[int] = []
        self.during_load = lambda: None
        self.keep = keep
        self.start()

    def start(self) -> None:
        """As a process does: with nothing but the registry and the file of the last good version."""
        self.manager = Manager(
            MODEL,
            registry=self.registry,
            loader=self,
            router=self.router,
            judge=SwapJudge(self.prove, self.router.traffic, watch=WATCH, resident=lambda: 1000 + len(self.loads)),
            last_good=LastGoodFile(self.state),
            comparison=lambda: None,
            metrics=self.metrics,
            clock=lambda: NOON,
            keep=self.keep,
            drain_limit=timedelta(0),
        )

    def prove(self, version: ModelVersion, golden: Golden) -> GoldenProof:
        self.proved.append(version.number)
        if version.number in self.full:
            return GoldenProof(version.golden_sha256, len(golden.texts), None, None, "no room")
        return GoldenProof(version.golden_sha256, len(golden.texts), version.number not in self.wrong, 0.0, "far off")

    def unloaded(self) -> None:
        self.unloads += 1

    def ask(self, number: int | None = None, *, seconds: float = 0.001, failing: bool = False) -> int:
        """One request; who answered it."""
        with suppress(ArtefactError), self.router.handle(number) as handle:
            self.now += seconds
            if failing:
                raise ArtefactError("the graph cannot be run")
        return handle.version.number

    def wait_in_vain(self, times: int, *, seconds: float = PATIENCE) -> None:
        """That long each, from the same moment on."""
        handles = [self.router.handle() for _ in range(times)]
        self.now += seconds
        for handle in handles:
            handle.__exit__(ExpiredError, ExpiredError("no answer"), None)

    def load_warm(self, version: ModelVersion) -> Loaded:
        self.loads.append(version.number)
        self.during_load()
        if version.number in self.broken:
            raise self.broken[version.number]
        return Loaded(Answering(version.number), GOLDEN)

    def add(self, count: int) -> None:
        for _ in range(count):
            run = paper_run(Path(f"run-{len(self.registry.versions(MODEL))}"))
            self.registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=NOON)

    def promote(self, number: int) -> None:
        aliases = self.registry.aliases(MODEL)
        self.registry.move(MODEL, replace(aliases, champion=number, previous=aliases.champion))

    def watched(self) -> ServingStatus:
        """Once the watch over a swap has ended."""
        self.now += WATCH
        return self.refresh()

    def refresh(self) -> ServingStatus:
        self.manager.refresh()
        return self.manager.status()

    def promote_in(self, registry: InMemoryRegistry, number: int) -> None:
        self.registry = registry
        self.promote(number)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"relearnd_{name}", labels)


class Unreadable:
    """A registry whose disk is gone."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        def fail(*_: object) -> object:
            raise ArtefactError(f"{name} cannot be read")

        return fail


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_waits_for_the_first_champion_and_says_so(bench: Bench) -> None:
    assert bench.refresh().waiting_for == "model 'tweets' has no champion yet"
    bench.add(1)
    assert bench.refresh().served is None
    bench.promote(1)
    status = bench.refresh()
    assert (status.served, status.waiting_for) == (1, None)
    with bench.router.handle() as handle:
        assert handle.predictor.predict(["x"])[0].label == "1"


def test_it_starts_with_the_champion_before_anything_else(bench: Bench) -> None:
    bench.keep = 4
    bench.start()
    bench.add(4)
    bench.promote(2)
    served_when_loading: list[int | None] = []
    bench.during_load = lambda: served_when_loading.append(bench.manager.status().served)
    bench.refresh()
    assert bench.loads == [2, 4, 3, 1]
    assert served_when_loading == [None, 2, 2, 2]


def test_a_swap_is_remembered_and_the_old_version_stays_for_a_roll_back_without_a_load(bench: Bench) -> None:
    bench.add(2)
    for champion in (1, 2, 1):
        bench.promote(champion)
        status = bench.refresh()
    assert bench.loads == [1, 2]
    assert [(swap.before, swap.after, swap.at) for swap in status.swaps] == [
        (None, 1, NOON),
        (1, 2, NOON),
        (2, 1, NOON),
    ]
    assert bench.metric("swaps_total", result="switched") == 3
    assert bench.metric("served_version") == 1


def test_versions_without_an_alias_leave_when_newer_ones_come(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.add(3)
    bench.promote(4)
    assert [version.number for version in bench.refresh().versions] == [1, 3, 4]  # previous, and the newest two
    bench.promote(3)
    assert bench.router.loaded == [1, 3, 4]
    bench.refresh()
    assert bench.router.loaded == [3, 4]
    with pytest.raises(NotFoundError):
        bench.router.handle(1)


@pytest.mark.parametrize("failure", [ArtefactError("damaged"), OSError("disk gone"), ValueError("a bug")])
def test_a_champion_that_cannot_be_loaded_leaves_the_old_one_answering(failure: Exception, bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.broken[2] = failure
    bench.add(1)
    bench.promote(2)
    for _ in range(MOST_FAILURES + 2):
        status = bench.refresh()
    assert bench.loads.count(2) == MOST_FAILURES
    assert (status.served, status.champion) == (1, 2)
    failed = next(version for version in status.versions if version.number == 2)
    assert (failed.state, failed.failures, failed.error) == (ServableState.FAILED, MOST_FAILURES, str(failure))
    assert bench.metric("load_failures_total") == MOST_FAILURES
    assert bench.metric("swaps_total", result="failed") == MOST_FAILURES
    with bench.router.handle() as handle:
        assert handle.predictor.predict(["x"])[0].label == "1"


def test_a_first_champion_that_cannot_be_loaded_is_why_nothing_is_served(bench: Bench) -> None:
    bench.add(1)
    bench.broken[1] = ArtefactError("golden outputs are not reproduced")
    bench.promote(1)
    assert bench.refresh().waiting_for == "champion 1 cannot be loaded: golden outputs are not reproduced"


def test_moving_the_aliases_is_a_new_chance_for_what_had_failed(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.broken[2] = ArtefactError("damaged")
    for _ in range(MOST_FAILURES + 1):
        bench.refresh()
    bench.broken.clear()
    assert bench.refresh().versions[1].state is ServableState.FAILED
    bench.promote(2)
    assert bench.refresh().served == 2


def test_a_champion_that_moves_while_another_loads_comes_next_and_the_last_word_wins(bench: Bench) -> None:
    bench.add(3)
    bench.promote(1)

    def promote_three_then_two() -> None:
        if len(bench.loads) == 1:
            bench.promote(3)
        elif len(bench.loads) == 2:
            bench.promote(2)

    bench.during_load = promote_three_then_two
    assert bench.refresh().served == 2
    assert bench.loads == [1, 3, 2]


def test_an_unreadable_registry_changes_nothing_and_is_visible(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()

    def unreadable(model: str) -> Aliases:
        raise ArtefactError("aliases.json cannot be read")

    readable, bench.registry.aliases = bench.registry.aliases, unreadable  # type: ignore[method-assign]
    status = bench.refresh()
    assert (status.served, status.registry_error) == (1, "aliases.json cannot be read")
    bench.registry.aliases = readable  # type: ignore[method-assign]
    assert bench.refresh().registry_error is None


def test_a_damaged_record_of_another_version_does_not_keep_the_champion_from_loading(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)

    def damaged(model: str) -> Sequence[ModelVersion]:
        raise RelearndError("7.json cannot be read")

    bench.registry.versions = damaged  # type: ignore[method-assign]
    status = bench.refresh()
    assert (status.served, status.registry_error) == (1, "7.json cannot be read")


# --- whether a swap stands ---


def test_a_version_that_answers_otherwise_at_the_endpoint_is_returned_from_and_left_alone(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.wrong.add(2)
    bench.promote(2)
    for _ in range(5):
        status = bench.refresh()
    assert bench.ask() == 1
    assert bench.proved == [1, 2], "no flapping"
    assert [(swap.after, swap.outcome) for swap in status.swaps] == [
        (1, SwapOutcome.SWITCHED),
        (2, SwapOutcome.RETURNED),
    ]
    assert "far off" in status.swaps[-1].detail
    assert status.degraded_because and "champion 2 is not served" in status.degraded_because
    assert bench.router.loaded == [1], "nobody can name it either"
    assert bench.metric("swaps_total", result="returned") == 1
    bench.wrong.clear()
    bench.promote(2)
    assert bench.refresh().served == 2, "moving the aliases is a new chance"


def test_a_version_on_which_requests_fail_while_it_is_watched_is_returned_from(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.ask(failing=True)  # before the swap, and on the old one: not the new one's fault
    bench.promote(2)
    assert bench.refresh().served == 2
    bench.ask()
    bench.ask(failing=True)
    status = bench.refresh()
    assert (status.served, status.swaps[-1].outcome, status.swaps[-1].failed) == (1, SwapOutcome.RETURNED, 1)
    assert "1 requests failed" in status.swaps[-1].detail
    assert bench.metric("swap_failed_requests_total") == 2, "of both swaps"


def test_a_client_that_leaves_or_a_full_queue_speak_against_no_version(bench: Bench) -> None:
    bench.add(2)
    for champion in (1, 2):
        bench.promote(champion)
        bench.refresh()
    for error in (OverloadedError("full"), ConnectionResetError(), TimeoutError()):
        with pytest.raises(type(error)), bench.router.handle():
            raise error
    assert bench.watched().served == 2


def test_a_version_that_leaves_requests_without_an_answer_is_returned_from(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.promote(2)
    bench.refresh()
    bench.wait_in_vain(200)
    status = bench.refresh()
    assert (status.served, status.swaps[-1].outcome) == (1, SwapOutcome.RETURNED)
    assert (status.swaps[-1].late, status.swaps[-1].failed) == (200, 0)
    assert status.swaps[-1].detail == "200 requests had no answer from it within 10 s, which is most of them"


def test_requests_that_were_late_before_the_swap_too_or_gave_up_early_speak_against_no_version(bench: Bench) -> None:
    bench.add(3)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.promote(2)
    bench.refresh()
    bench.wait_in_vain(200, seconds=1.0)
    assert bench.watched().served == 2, "their clients had less patience than the server"
    bench.wait_in_vain(1)
    bench.promote(3)
    bench.refresh()
    bench.wait_in_vain(200)
    assert bench.refresh().served == 3, "there is more load than either of them can carry"


def test_the_watch_waits_for_the_requests_that_were_begun_meanwhile(bench: Bench) -> None:
    bench.add(2)
    for champion in (1, 2):
        bench.promote(champion)
        bench.refresh()
    with bench.router.handle():
        assert bench.watched().swaps[-1].outcome is SwapOutcome.WATCHED
        bench.now += PATIENCE
        assert bench.refresh().swaps[-1].outcome is SwapOutcome.SWITCHED, "others will have begun since"


def test_a_version_for_whose_golden_texts_there_is_no_room_is_watched_until_there_is(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.full.add(2)
    bench.promote(2)
    bench.refresh()
    for _ in range(3):
        status = bench.watched()
    assert (status.served, status.swaps[-1].outcome) == (2, SwapOutcome.WATCHED)
    assert LastGoodFile(bench.state).read(MODEL).number == 1  # type: ignore[union-attr]
    bench.full.clear()
    status = bench.watched()
    assert (status.swaps[-1].outcome, status.swaps[-1].golden.equal) == (SwapOutcome.SWITCHED, True)  # type: ignore[union-attr]
    assert LastGoodFile(bench.state).read(MODEL).number == 2  # type: ignore[union-attr]


def test_a_version_that_turns_out_wrong_when_there_is_room_is_returned_from(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.full.add(2)
    bench.wrong.add(2)
    bench.promote(2)
    assert bench.refresh().served == 2
    bench.full.clear()
    assert bench.refresh().served == 1


def test_the_report_counts_every_request_however_many_there_are(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.add(1)
    bench.ask(seconds=0.010)

    def busy_load() -> None:
        for number in range(10_000):
            bench.ask(seconds=0.001, failing=number < 50)

    bench.during_load = busy_load
    bench.promote(2)
    bench.refresh()
    for _ in range(10_000):
        bench.ask(seconds=0.0004)
    report = bench.watched().swaps[-1]
    assert (report.requests, report.failed) == (20_000, 50)
    assert report.p99_ms_before == pytest.approx(10)
    assert report.p99_ms_during == pytest.approx(1, rel=0.011)


def test_what_is_not_known_yet_is_not_shown_as_a_figure(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    [report] = bench.refresh().swaps
    assert (report.requests, report.failed, report.late, report.rss_after) == (None, None, None, None)
    assert not {"requests", "failed", "rss_after"} & report.facts.keys()
    assert report.facts["golden_equal"] is True


def test_a_load_that_fails_has_a_report_too(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.add(1)
    bench.broken[2] = ArtefactError("damaged")
    bench.during_load = lambda: bench.ask(1, seconds=0.020) and None
    bench.promote(2)
    report = bench.refresh().swaps[-1]
    assert (report.before, report.after, report.outcome, report.detail) == (1, 2, SwapOutcome.FAILED, "damaged")
    assert (report.requests, report.golden, report.switch_ms) == (1, None, None)
    assert report.load_ms == pytest.approx(20)


def test_a_champion_that_was_loaded_and_not_switched_to_is_no_part_of_a_later_swap_to_it(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.add(1)
    bench.during_load = lambda: bench.promote(1)
    bench.promote(2)
    assert bench.refresh().served == 1, "the operator thought better of it"
    bench.ask(seconds=3600)
    bench.ask(2, failing=True)
    bench.now += 3600
    bench.promote(2)
    report = bench.refresh().swaps[-1]
    assert (report.after, report.outcome, report.load_ms) == (2, SwapOutcome.WATCHED, 0)
    assert bench.watched().swaps[-1].requests == 0


def test_the_version_before_stays_loaded_for_as_long_as_the_new_one_is_watched(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.add(3)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), champion=4, previous=None))
    assert bench.refresh().served == 4
    assert bench.router.loaded == [1, 3, 4]
    bench.ask(failing=True)
    assert bench.refresh().served == 1
    bench.promote(3)
    bench.refresh()
    assert bench.router.loaded == [1, 3, 4]
    bench.watched()
    assert bench.router.loaded == [3, 4], "nothing holds it any more"


def test_the_report_says_what_requests_met_before_during_and_after(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.add(1)
    bench.ask(seconds=0.010)
    bench.during_load = lambda: bench.ask(seconds=0.020) and None
    bench.promote(2)
    bench.refresh()
    bench.ask(seconds=0.030)
    report = bench.watched().swaps[-1]
    assert report.p99_ms_before == pytest.approx(10)
    assert report.p99_ms_during == pytest.approx(20, rel=0.011)
    assert report.p99_ms_after == pytest.approx(30, rel=0.011)
    assert report.golden and (report.requests, report.failed, report.golden.equal) == (2, 0, True)
    assert report.load_ms == pytest.approx(20)
    assert (report.rss_before, report.rss_after) == (1001, 1002)
    assert report.golden.sha256 == bench.registry.version(MODEL, 2).golden_sha256


def test_only_so_many_reports_are_kept(bench: Bench) -> None:
    bench.add(2)
    for swap in range(120):
        bench.promote(1 + swap % 2)
        bench.refresh()
    assert len(bench.watched().swaps) == 100


# --- canary and shadow ---


def test_a_canary_answers_its_share_of_the_keys_always_the_same(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.2))
    status = bench.refresh()
    assert (status.served, status.canary, status.canary_share) == (1, 2, 0.2)
    keys = [f"request {number}" for number in range(2000)]

    def who() -> list[int]:
        return [bench.router.handle(key=key).version.number for key in keys]

    few = who()
    assert few == who()
    assert 0.17 < few.count(2) / len(few) < 0.23
    assert bench.ask() == 1, "without a key it is the champion"
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary_share=0.5))
    bench.refresh()
    assert all(after == 2 for before, after in zip(few, who(), strict=True) if before == 2)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=None, canary_share=0.0))
    bench.refresh()
    assert set(who()) == {1}


def test_a_canary_that_cannot_be_loaded_leaves_its_share_to_the_champion(bench: Bench) -> None:
    bench.add(2)
    bench.broken[2] = ArtefactError("damaged")
    bench.promote(1)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.5))
    for _ in range(3):
        status = bench.refresh()
    assert (status.canary, status.canary_share) == (None, 0.0)
    assert {bench.router.handle(key=f"{number}").version.number for number in range(50)} == {1}
    assert bench.metric("canary_version") == 0


def test_a_canary_on_which_requests_fail_is_taken_off(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.5))
    bench.refresh()
    bench.watched()
    assert bench.ask(2, failing=True) == 2
    status = bench.refresh()
    assert (status.served, status.canary) == (1, None)
    refused = next(version for version in status.versions if version.number == 2)
    assert refused.state is ServableState.FAILED and "failed" in (refused.error or "")
    assert bench.refresh().canary is None


# --- a start in need ---


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
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
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
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.watched()
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
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.watched()
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
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    bench.registry = InMemoryRegistry()
    bench.router.publish(None, {})
    bench.start()
    assert bench.refresh().waiting_for == "model 'tweets' has no champion yet"


def test_a_memory_that_cannot_be_read_for_a_moment_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add(2)
    bench.promote(1)
    bench.refresh()
    bench.watched()

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
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.watched()
    remembered = LastGoodFile(bench.state).read(MODEL)
    assert remembered is not None and remembered.digest == bench.registry.version(MODEL, 1).digest
    assert LastGoodFile(bench.state).read("another") is None
