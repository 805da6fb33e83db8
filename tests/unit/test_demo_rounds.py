from dataclasses import replace

import pytest

from daemon.demo.readings import Decided, Drift, Judged, Score, decisions, status
from daemon.demo.rounds import RoundTracker, Scored, Windows

WINDOWS = Windows(first=2, after=2, prequential=10)
DRIFT = Drift(True, {"label": Score(0.3, 0.1, True)}, up_to=640)
TRAIN = Decided(
    number=7,
    at=11.0,
    action="train",
    reasons=[],
    triggers=["drift"],
    version=None,
    champion=1,
    drift=DRIFT,
    judged=None,
)
PASSED = Judged("pass", ["floor: pass: fine"], [], {}, None)
PROMOTE = Decided(
    number=8, at=20.0, action="promote", reasons=[], triggers=[], version=2, champion=None, drift=None, judged=PASSED
)


def tracker(*told: Decided | Scored) -> RoundTracker:
    """A round that began at second 10 and was told this."""
    tracker = RoundTracker("apple", WINDOWS, began=10.0)
    for one in told:
        if isinstance(one, Decided):
            tracker.decided(one)
        else:
            tracker.answered(one.version, one.at)
            tracker.scored(one)
    return tracker


def answer(at: float, version: int, correct: bool = True) -> Scored:
    return Scored(at, example=int(at), source="apple", version=version, correct=correct)


def test_a_run_decided_before_the_source_began_is_not_its_run() -> None:
    early = tracker(replace(TRAIN, at=9.9), PROMOTE, answer(21.0, 2), answer(22.0, 2))

    assert early.round().missing == "apple: no run was started"
    assert early.round().judged is None, "nor is the verdict on it"


def test_a_run_without_drift_is_no_round() -> None:
    unmoved = replace(TRAIN, triggers=["volume"], drift=replace(DRIFT, drifted=False))

    round = tracker(unmoved, PROMOTE, answer(21.0, 2), answer(22.0, 2)).round()

    assert round.missing == "apple: the run was started by volume, and the decision to start it had seen no drift"


def test_answers_of_the_new_version_that_came_before_its_promotion_was_known_count() -> None:
    """The learner is looked at twice a second, the server answers forty times."""
    quick = tracker(TRAIN, answer(20.1, 2), answer(20.2, 2), PROMOTE)

    assert quick.done
    assert quick.round().seconds_drift_to_serving == pytest.approx(9.1)


def test_accuracies_are_of_the_first_answers_of_the_old_and_of_the_new_version() -> None:
    seen = tracker(
        answer(11.0, 1, False), answer(12.0, 1, True), answer(13.0, 1, True), TRAIN, PROMOTE,
        answer(21.0, 2, True), answer(22.0, 2, True), answer(23.0, 2, False),
    )  # fmt: skip

    assert (seen.round().accuracy_first_window, seen.round().accuracy_after) == (0.5, 1.0)
    assert seen.round().drift_at_example == 640


@pytest.mark.parametrize(
    ("told", "missing"),
    [
        ([TRAIN], "apple: a run was started, none reached a verdict"),
        ([TRAIN, PROMOTE], "apple: version 2 was promoted, but no live answer named it"),
        (
            [TRAIN, PROMOTE, answer(21.0, 2)],
            "apple: version 2 gave 1 scored answers of the 2 needed to measure it",
        ),
        ([TRAIN, replace(TRAIN, number=9)], "apple: 2 runs were started, none reached a verdict"),
    ],
)
def test_what_is_missing_is_said(told: list[Decided | Scored], missing: str) -> None:
    assert tracker(*told).round().missing == missing
    assert not tracker(*told).done


def test_an_operators_promotion_is_no_verdict_on_a_run() -> None:
    by_hand = replace(PROMOTE, judged=None)

    assert tracker(TRAIN, by_hand).round().judged is None


def test_decisions_are_read_oldest_first_with_drift_by_column_name() -> None:
    at = "1970-01-01T00:01:40+00:00"
    train = {
        "at": at, "action": "train", "reasons": ["drift: label"], "triggers": [{"kind": "drift", "reason": "label"}],
        "evidence": {
            "champion": 3,
            "drift": {
                "drifted": True, "current_to_seq": 640,
                "columns": {"label": {"score": 0.3, "threshold": 0.1, "drifted": True}},
            },
        },
    }  # fmt: skip
    judged = {
        "at": at, "action": "reject", "version": 4,
        "verdict": {"outcome": "fail", "gates": [
            {"gate": "floor", "outcome": "pass", "reason": "a"}, {"gate": "parity", "outcome": "fail", "reason": "b"},
        ]},
        "evidence": {"challenger": {"accuracy": 0.6}, "champion": {"accuracy": 0.5}},
    }  # fmt: skip

    first, second = decisions(
        {"decisions": [{"number": 2, "decision": judged}, {"number": 1, "decision": train}]}, started=90.0
    )

    assert (first.number, first.at, first.champion, first.triggers) == (1, 10.0, 3, ["drift"])
    assert first.drift == DRIFT
    assert second.judged is not None
    assert second.judged.unmet == ["parity: fail: b"]
    assert (second.judged.champion, second.champion) == ({"accuracy": 0.5}, None)


def test_a_status_is_read_with_columns_in_a_list_and_without_what_is_not_there() -> None:
    drift = {"drifted": False, "columns": [{"column": "label", "score": None, "threshold": 0.1, "drifted": False}]}

    seen = status({"stage": "training", "drift": drift, "run": {"id": "r", "progress": None}})
    nothing = status({})

    assert seen.drift == Drift(False, {"label": Score(None, 0.1, False)}, None)
    assert seen.run is not None and (seen.run.step, seen.run.total) == ("", 0)
    assert (nothing.stage, nothing.stored, nothing.run) == ("starting", 0, None)
