"""Windows, the champion's accuracy on them, and when columns add up to drift."""

import math
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.states import Split
from daemon.core.stream import StoredExample
from daemon.core.types import ColumnDrift, DriftTest, ModelVersion, SliceScore, WindowRow
from daemon.policy.schema import P_VALUE_METHODS, DriftPolicy
from daemon.policy.windows import drift_verdict, performance, window_rows

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LABEL = DriftTest("label", "jensenshannon", 0.15, is_p_value=False)
LENGTH = DriftTest("text_length", "ks", 0.05, is_p_value=True)


def stored(seq: int, label: str) -> StoredExample:
    return StoredExample(seq, f"id-{seq}", f"text {seq}", label, "s", Split.TRAIN, NOW)


def champion(*, accuracy: float, recent: float | None) -> ModelVersion:
    slices = {} if recent is None else {"recent": SliceScore(100, recent, recent)}
    evaluation = SimpleNamespace(accuracy=accuracy, slices=slices)
    return cast(ModelVersion, SimpleNamespace(evaluation=evaluation))


def test_a_row_joins_an_example_with_the_answer_to_its_seq() -> None:
    rows = window_rows([stored(7, "up"), stored(9, "down")], {9: ("up", 0.6), 7: ("up", 0.9), 8: ("down", 0.5)})
    assert rows == [WindowRow("text 7", "up", "up", 0.9), WindowRow("text 9", "down", "up", 0.6)]


@pytest.mark.parametrize(("recent", "baseline"), [(0.7, 0.7), (None, 0.8)])
def test_performance_is_held_against_what_the_champion_reached_on_what_was_recent_then(
    recent: float | None, baseline: float
) -> None:
    rows = [WindowRow("t", "up", answer, 0.9) for answer in ("up", "up", "up", "down")]
    seen = performance(rows, champion(accuracy=0.8, recent=recent))
    assert seen is not None
    assert (seen.examples, seen.accuracy, seen.baseline) == (4, 0.75, baseline)


def test_an_empty_window_has_no_performance() -> None:
    assert performance([], champion(accuracy=0.8, recent=0.7)) is None


@pytest.mark.parametrize(
    ("test", "score", "drifted"),
    [
        (LABEL, 0.15, True),
        (LABEL, 0.1499, False),
        (LENGTH, 0.0499, True),
        (LENGTH, 0.05, False),
        (LENGTH, 0.0, True),
    ],
)
def test_a_distance_alarms_at_its_threshold_and_a_p_value_below(test: DriftTest, score: float, drifted: bool) -> None:
    measured = test.measured(score)
    assert (measured.drifted, measured.score, measured.error) == (drifted, score, None)


@given(st.sampled_from([LABEL, LENGTH]), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_score_that_is_not_finite_is_unknown_and_never_drift(test: DriftTest, score: float) -> None:
    measured = test.measured(score)
    assert (measured.drifted, measured.score) == (False, None)
    assert measured.error


@pytest.mark.parametrize(("needed", "drifted"), [(1, True), (2, True), (3, False)])
def test_enough_columns_must_have_drifted(needed: int, drifted: bool) -> None:
    columns: list[Any] = [LABEL.measured(0.9), LENGTH.measured(0.001), LENGTH.unknown("constant")]
    policy = DriftPolicy.model_validate(
        {
            "min_drifted_columns": needed,
            "columns": {name: {"method": "psi", "threshold": 0.1} for name in ("label", "text_length", "word_count")},
        }
    )
    found, detail = drift_verdict(columns, policy)
    assert found is drifted
    assert detail == f"2 of 3 columns drifted, {needed} needed (label, text_length); unknown: text_length"


def test_a_column_that_claims_drift_without_a_score_does_not_count() -> None:
    liar = ColumnDrift("label", "psi", None, 0.1, drifted=True)
    assert drift_verdict([liar], DriftPolicy()) == (False, "0 of 1 columns drifted, 1 needed; unknown: label")


def test_the_policy_tells_the_detector_which_methods_are_p_values() -> None:
    policy = DriftPolicy.model_validate(
        {
            "columns": {
                "label": {"method": "chisquare", "threshold": 0.01},
                "text_length": {"method": "wasserstein", "threshold": 0.4},
            }
        }
    )
    assert policy.tests == (
        DriftTest("label", "chisquare", 0.01, is_p_value=True),
        DriftTest("text_length", "wasserstein", 0.4, is_p_value=False),
    )
    assert "wasserstein" not in P_VALUE_METHODS
