"""Whether a swap stands, and what its report says."""

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.core.errors import ArtefactError, OverloadedError
from daemon.serve.last_good import LastGoodFile
from daemon.serve.swap_report import SwapOutcome
from tests.artefacts import MODEL
from tests.managing import PATIENCE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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
    bench.settle(2)
    bench.promote(2)
    bench.refresh()
    bench.wait_in_vain(200)
    status = bench.refresh()
    assert (status.served, status.swaps[-1].outcome) == (1, SwapOutcome.RETURNED)
    assert (status.swaps[-1].late, status.swaps[-1].failed) == (200, 0)
    assert status.swaps[-1].detail == "200 requests had no answer from it within 10 s, which is most of them"


def test_requests_that_were_late_before_the_swap_too_or_gave_up_early_speak_against_no_version(bench: Bench) -> None:
    bench.settle(3)
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
    bench.settle(1)
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
    bench.settle(1)
    bench.add(1)
    bench.broken[2] = ArtefactError("damaged")
    bench.during_load = lambda: bench.ask(1, seconds=0.020) and None
    bench.promote(2)
    report = bench.refresh().swaps[-1]
    assert (report.before, report.after, report.outcome, report.detail) == (1, 2, SwapOutcome.FAILED, "damaged")
    assert (report.requests, report.golden, report.switch_ms) == (1, None, None)
    assert report.load_ms == pytest.approx(20)


def test_a_champion_that_was_loaded_and_not_switched_to_is_no_part_of_a_later_swap_to_it(bench: Bench) -> None:
    bench.settle(1)
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
    bench.settle(1)
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
