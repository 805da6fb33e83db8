import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from daemon.demo.display import PlainLines
from daemon.demo.page import page
from daemon.demo.report import Ledger, broken_promises, ledger, report
from daemon.demo.scores import Prequential, percentile, within
from daemon.demo.story import Asked, Story
from daemon.demo.traffic import Reply
from daemon.demo.view import plain, rounds_table, screen, summary
from tests.unit.demo_simulation import PLAN, Show

COVERAGE = {
    "offsets": 103,
    "examples": 100,
    "dead_letters": 3,
    "gap_offsets": 0,
    "lost": 0,
    "twice": 0,
    "repeated_ids": 0,
}
ALL_WELL = Ledger(written=103, malformed=3, stored=100, dead_lettered=3, lost=0, twice=0)


@pytest.fixture(scope="module")
def show() -> Show:
    show = Show(["pass", "pass", "fail", "pass"], drift_on=["coachella", "apple"])
    assert show.play() == []
    return show


@pytest.fixture
def story(show: Show) -> Story:
    return show.journal.story()


def test_the_report_has_the_promised_shape(story: Story) -> None:
    told = report(story, ALL_WELL, broker="tansu")

    assert list(told) == ["broker", "seconds", "rounds", "requests", "versions_served", "examples"]
    assert list(told["rounds"][0]) == [
        "source", "drift_at_example", "drift", "accuracy_first_window", "accuracy_after", "champion", "challenger",
        "verdict", "reasons", "seconds_drift_to_serving",
    ]  # fmt: skip
    assert told["rounds"][0]["drift"] == {"label": {"score": 0.31, "threshold": 0.15, "drifted": True}}
    assert told["rounds"][1]["champion"]["version"] == 2
    assert told["rounds"][1]["challenger"]["version"] == 4
    assert told["versions_served"] == [1, 2, 4], "version 3 was rejected and never answered"
    assert list(told["requests"]) == ["sent", "answered", "failed", "p50_ms", "p99_ms", "p99_in_swap_windows_ms"]
    assert told["examples"] == {"produced": 103, "stored": 100, "dead_lettered": 3, "lost": 0, "twice": 0}


def test_a_metric_that_is_not_finite_becomes_null(story: Story) -> None:
    told = report(story, ALL_WELL, broker="tansu")

    assert told["rounds"][0]["challenger"]["accuracy"] == 0.61
    assert told["rounds"][0]["challenger"]["macro_f1"] is None
    json.dumps(told, allow_nan=False)


def test_latency_around_swaps_counts_only_answers_within_a_second_of_one(story: Story) -> None:
    asked = [Asked(at=float(at), ms=float(at), version=1) for at in range(20)]
    quiet = replace(story, asked=asked, swaps=[10.0])

    assert report(quiet, ALL_WELL, broker="tansu")["requests"]["p99_in_swap_windows_ms"] == 11.0
    assert report(replace(quiet, swaps=[]), ALL_WELL, broker="tansu")["requests"]["p99_in_swap_windows_ms"] is None


def test_a_demo_that_ended_before_anything_still_has_a_report_and_a_page() -> None:
    empty = Story(1.0, legs=[], points=[], asked=[], errors=[], swaps=[], events=[], rounds=[], produced_at=[])

    told = report(empty, ALL_WELL, broker="tansu")

    assert told["requests"]["p99_ms"] is None
    assert "relearnd demo" in page(empty, told, ["a promised round did not happen"])


def test_nothing_is_broken_when_all_went_well(story: Story) -> None:
    assert broken_promises(story, ALL_WELL, [], exit_code=0) == []


@pytest.mark.parametrize(
    ("found", "missing", "exit_code", "sentence"),
    [
        (ALL_WELL, ["apple: no run was started"], 0, "a promised round did not happen: apple: no run was started"),
        (
            ALL_WELL,
            ["apple: no run was started", "the newest run failed: killed"],
            0,
            "a promised round did not happen: apple: no run was started; the newest run failed: killed",
        ),
        (replace(ALL_WELL, lost=2), [], 0, "of 103 records 2 were lost and 0 are there twice"),
        (replace(ALL_WELL, twice=1), [], 0, "of 103 records 0 were lost and 1 are there twice"),
        (replace(ALL_WELL, dead_lettered=2), [], 0, "3 malformed records were produced, 2 became dead letters"),
        (ALL_WELL, [], 70, "`relearnd run` was asked to stop and ended with exit code 70"),
    ],
)
def test_each_broken_promise_is_a_sentence(
    story: Story, found: Ledger, missing: list[str], exit_code: int, sentence: str
) -> None:
    assert broken_promises(story, found, missing, exit_code=exit_code) == [sentence]


def test_a_failed_request_breaks_a_promise(story: Story) -> None:
    failed = replace(story, errors=["HTTP 500"])

    (sentence,) = broken_promises(failed, ALL_WELL, [], exit_code=0)

    assert sentence.endswith("requests failed; the first: HTTP 500")


def test_records_that_never_came_to_the_store_are_lost() -> None:
    found = ledger(110, 3, COVERAGE)

    assert (found.lost, found.twice) == (7, 0)


def test_a_learner_that_cannot_be_asked_is_a_broken_promise_with_unknown_numbers(story: Story) -> None:
    found = ledger(110, 3, None)

    assert report(story, found, broker="tansu")["examples"] == {
        "produced": 110, "stored": None, "dead_lettered": None, "lost": None, "twice": None,
    }  # fmt: skip
    assert broken_promises(story, found, [], exit_code=0) == [
        "the learner could not be asked what became of 110 records"
    ]
    assert "unknown lost" in summary(report(story, found, broker="tansu"))[1]


def test_ids_that_are_there_again_are_there_twice() -> None:
    assert ledger(103, 3, {**COVERAGE, "repeated_ids": 4}).twice == 4


def test_an_answer_that_failed_is_counted_and_not_scored() -> None:
    show = Show(["pass"] * 3, drift_on=PLAN.sources)
    show.ask = lambda text: Reply(3.0, error="HTTP 503")  # type: ignore[method-assign]
    (sentence,) = show.play()

    picture = show.journal.picture()
    assert picture.sent == picture.failed > 0
    assert picture.points == []
    assert sentence.startswith("airline: version 1 was promoted, but no live answer named it")


def test_the_screen_fits_into_80_by_24(show: Show) -> None:
    picture = show.journal.picture()
    crowded = replace(picture, rounds=[*picture.rounds, *picture.rounds])
    console = Console(width=80, height=24, file=io.StringIO(), record=True)

    console.print(screen(crowded, sources=PLAN.sources, broker="apache-kafka"))

    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any("pass, run 2" in line for line in lines), "no cell was cut"


def test_the_screen_is_there_before_anything_has_happened() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    picture = Show([], drift_on=[]).journal.picture()

    console.print(screen(picture, sources=PLAN.sources, broker="tansu"))

    assert "learner: starting" in console.export_text()
    assert plain(picture).startswith("0:00 starting")


def test_plain_lines_tell_each_event_once_and_how_things_stand_every_few_seconds(show: Show) -> None:
    lines: list[str] = []
    log = PlainLines(lines.append)
    picture = show.journal.picture()

    for seconds in (30.0, 31.0, 36.0):
        log.show(replace(picture, seconds=seconds))

    assert sum("produced" in line for line in lines) == 2
    assert sum("drift noticed" in line for line in lines) == 2, "one for each source"


def test_the_page_needs_no_network_and_escapes_what_it_tells(story: Story) -> None:
    told = report(story, ALL_WELL, broker="tansu")

    html = page(story, told, ["<b>bad</b>"])

    assert "<script src" not in html and "<link" not in html
    assert "&lt;b&gt;bad&lt;/b&gt;" in html
    assert "coachella" in html and "drift noticed" in html and "swapped in" in html


def test_the_table_and_the_summary_name_rounds_and_requests(story: Story) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(rounds_table(story.rounds))
    lines = summary(report(story, ALL_WELL, broker="tansu"))

    assert "coachella" in console.export_text()
    assert lines[1] == "records   103 produced, 100 stored, 3 dead letters, 0 lost, 0 twice"


@pytest.mark.parametrize(("q", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_percentiles_are_values_that_occurred(q: float, expected: float) -> None:
    assert percentile((float(n) for n in range(100, 0, -1)), q) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 0.99) is None


def test_prequential_accuracy_forgets_what_left_its_window() -> None:
    prequential = Prequential(4)

    assert [prequential.add(correct) for correct in (True, False, True, True, False, False)] == [
        1.0, 0.5, 2 / 3, 0.75, 0.5, 0.5,
    ]  # fmt: skip


def test_moments_near_another_are_found_on_both_sides() -> None:
    assert within([8.9, 9.0, 10.0, 11.0, 11.1], of=[10.0], seconds=1.0) == [False, True, True, True, False]
