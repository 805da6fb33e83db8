"""Promise 2, never worse: what passes, what fails, and that nothing unknown ever passes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.states import Outcome
from daemon.core.types import (
    ClassScore,
    EvalReport,
    ParityReport,
    QuantizationReport,
    RunResult,
    SliceScore,
    TrainingReport,
    Verdict,
)
from daemon.policy.gates import judge
from daemon.policy.schema import Policy

POLICY = Policy()
LABELS = ("negative", "neutral", "positive")
TRAINING = TrainingReport(1000, 500, 90, 3, 60.0, "cpu", "fp32", 0.3, 0.8, 10**9)


def evaluation(accuracy: float = 0.80, *, recent: float = 0.80, past: float = 0.80, examples: int = 300) -> EvalReport:
    return EvalReport(
        eval_set="rows",
        examples=2 * examples,
        accuracy=accuracy,
        macro_f1=accuracy,
        per_class={label: ClassScore(accuracy, accuracy, accuracy, 200) for label in LABELS},
        slices={"recent": SliceScore(examples, recent, recent), "past": SliceScore(examples, past, past)},
        latency_ms_p50=5.0,
        latency_ms_p99=20.0,
    )


def result(challenger: EvalReport, champion: EvalReport | None = None, **changes: Any) -> RunResult:
    made = RunResult(
        run_id="r1",
        labels=LABELS,
        base_digest="b",
        base_is_new=False,
        training=TRAINING,
        parity=ParityReport(200, 1e-5, 1.0),
        challenger=challenger,
        champion=champion,
        packages={},
    )
    return replace(made, **changes)


def verdict(challenger: EvalReport, champion: EvalReport | None = None, **changes: Any) -> Verdict:
    return judge(result(challenger, champion, **changes), POLICY, parent=1 if champion else None)


def outcomes(verdict: Verdict) -> dict[str, Outcome]:
    return {gate.gate: gate.outcome for gate in verdict.gates if gate.outcome is not Outcome.PASS}


def without(report: EvalReport, name: str) -> EvalReport:
    return replace(report, slices={key: score for key, score in report.slices.items() if key != name})


def test_a_challenger_that_is_as_good_passes_every_gate_with_a_reason_for_each() -> None:
    judged = verdict(evaluation(), evaluation())
    assert judged.outcome is Outcome.PASS
    assert [gate.gate for gate in judged.gates] == [
        "evidence", "floor", "non_inferiority", "per_class", "parity", "latency",
    ]  # fmt: skip
    assert all(gate.reason for gate in judged.gates)


def test_a_first_version_needs_no_champion_but_everything_else() -> None:
    first = replace(evaluation(), slices={"recent": SliceScore(300, 0.8, 0.8)})
    assert verdict(first).outcome is Outcome.PASS
    assert outcomes(verdict(replace(first, accuracy=0.4))) == {"floor": Outcome.FAIL}


@pytest.mark.parametrize(
    ("challenger", "gate"),
    [
        (evaluation(0.39), "floor"),
        (evaluation(recent=0.79), "non_inferiority"),
        (evaluation(past=0.76), "non_inferiority"),
        (replace(evaluation(), latency_ms_p99=251.0), "latency"),
        (
            replace(evaluation(), per_class={**evaluation().per_class, "neutral": ClassScore(0.9, 0.09, 0.2, 20)}),
            "per_class",
        ),
    ],
)
def test_a_number_beyond_its_limit_fails(challenger: EvalReport, gate: str) -> None:
    judged = verdict(challenger, evaluation())
    assert judged.outcome is Outcome.FAIL
    assert outcomes(judged) == {gate: Outcome.FAIL}


@pytest.mark.parametrize(
    "challenger",
    [
        evaluation(0.50),
        evaluation(recent=0.80),
        evaluation(past=0.77),
        replace(evaluation(), latency_ms_p99=250.0),
        replace(evaluation(), per_class={**evaluation().per_class, "neutral": ClassScore(0.9, 0.0, 0.0, 19)}),
    ],
)
def test_a_number_at_its_limit_passes(challenger: EvalReport) -> None:
    assert verdict(challenger, evaluation()).outcome is Outcome.PASS


def test_reasons_name_the_value_and_the_limit() -> None:
    reasons = verdict(evaluation(0.45, past=0.70), evaluation()).reasons
    assert "floor: fail: accuracy 45.00%, at least 50.00% asked" in reasons
    assert (
        "non_inferiority: fail: past macro_f1 70.00% against the champion's 80.00% on 300 examples "
        "(-10.00 points, -3.00 allowed)"
    ) in reasons


@pytest.mark.parametrize(("max_abs_diff", "agreement"), [(0.0011, 1.0), (1e-5, 0.994)])
def test_an_artefact_that_answers_otherwise_than_torch_fails(max_abs_diff: float, agreement: float) -> None:
    judged = verdict(evaluation(), evaluation(), parity=ParityReport(200, max_abs_diff, agreement))
    assert outcomes(judged) == {"parity": Outcome.FAIL}


@pytest.mark.parametrize(
    ("challenger", "champion", "gate"),
    [
        (evaluation(examples=199), evaluation(examples=199), "evidence"),
        (without(evaluation(), "past"), evaluation(), "non_inferiority"),
        (evaluation(), without(evaluation(), "recent"), "non_inferiority"),
        (replace(evaluation(), eval_set="others"), evaluation(), "non_inferiority"),
        (evaluation(), evaluation(recent=math.nan), "non_inferiority"),
        (evaluation(examples=300), evaluation(examples=299), "non_inferiority"),
        (replace(evaluation(), latency_ms_p99=0.0), evaluation(), "latency"),
        (replace(evaluation(), latency_ms_p99=math.nan), evaluation(), "latency"),
        (replace(evaluation(), accuracy=math.nan), evaluation(), "floor"),
        (replace(evaluation(), accuracy=1.01), evaluation(), "floor"),
    ],
)
def test_what_is_missing_or_no_number_is_inconclusive(challenger: EvalReport, champion: EvalReport, gate: str) -> None:
    judged = verdict(challenger, champion)
    assert judged.outcome is Outcome.INCONCLUSIVE
    assert outcomes(judged) == {gate: Outcome.INCONCLUSIVE}


def test_a_label_nobody_was_tested_on_is_inconclusive() -> None:
    seen = {label: score for label, score in evaluation().per_class.items() if label != "neutral"}
    judged = verdict(replace(evaluation(), per_class=seen), evaluation())
    assert outcomes(judged) == {"evidence": Outcome.INCONCLUSIVE}
    assert any("0 holdout examples of 'neutral', 5 needed" in reason for reason in judged.reasons)


def test_a_champion_that_was_not_scored_is_not_the_same_as_none() -> None:
    judged = judge(result(evaluation(), champion=None), POLICY, parent=4)
    assert outcomes(judged) == {"non_inferiority": Outcome.INCONCLUSIVE}


def test_no_compared_text_is_inconclusive() -> None:
    judged = verdict(evaluation(), evaluation(), parity=ParityReport(0, 0.0, 1.0))
    assert outcomes(judged) == {"parity": Outcome.INCONCLUSIVE}


def test_a_failure_outweighs_what_is_unknown() -> None:
    assert verdict(replace(evaluation(0.1), latency_ms_p99=math.nan), evaluation()).outcome is Outcome.FAIL


# --- whatever the numbers ---

Spoil = Callable[[EvalReport, float], EvalReport]
SPOILS: dict[str, Spoil] = {
    "accuracy": lambda report, bad: replace(report, accuracy=bad),
    "macro F1": lambda report, bad: replace(report, macro_f1=bad),
    "latency": lambda report, bad: replace(report, latency_ms_p99=bad),
    "recall": lambda report, bad: replace(
        report, per_class={**report.per_class, "neutral": ClassScore(0.8, bad, 0.8, 200)}
    ),
    "recent": lambda report, bad: replace(report, slices={**report.slices, "recent": SliceScore(300, bad, bad)}),
    "past": lambda report, bad: replace(report, slices={**report.slices, "past": SliceScore(300, bad, bad)}),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, 1e308])
@pytest.mark.parametrize("spoiled", SPOILS)
def test_one_bad_number_is_enough_to_stop_a_good_challenger(spoiled: str, bad: float) -> None:
    challenger = SPOILS[spoiled](evaluation(), bad)
    assert judge(result(challenger, evaluation()), POLICY, parent=1).outcome is not Outcome.PASS


LENIENT = Policy.model_validate(
    {
        "gates": {
            "evidence": {"min_examples": 1, "min_per_class": 0},
            "floor": {"accuracy": 0, "macro_f1": 0},
            "non_inferiority": {"recent_margin": 1, "past_margin": 1},
            "per_class": {"min_recall": 0, "min_support": 1},
            "parity": {"max_abs_diff": 1e300, "min_agreement": 0},
            "latency": {"max_p99_ms": 1e300},
        }
    }
)


REMOVALS: dict[str, Callable[[EvalReport], EvalReport]] = {
    "no recent": lambda report: without(report, "recent"),
    "no past": lambda report: without(report, "past"),
    "no labels": lambda report: replace(report, per_class={}),
    "no rows": lambda report: replace(report, eval_set=""),
    "empty recent": lambda report: replace(report, slices={**report.slices, "recent": SliceScore(0, 0.8, 0.8)}),
}
wild = st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf]) | st.floats()


@st.composite
def reports(draw: st.DrawFn) -> EvalReport:
    """A good report in which some numbers were replaced by anything and some parts are gone."""
    report = evaluation(draw(st.floats(0, 1)))
    for spoiled in draw(st.lists(st.sampled_from(list(SPOILS)), max_size=2)):
        report = SPOILS[spoiled](report, draw(wild))
    for removed in draw(st.lists(st.sampled_from(list(REMOVALS)), max_size=1)):
        report = REMOVALS[removed](report)
    return report


parities = st.builds(ParityReport, st.integers(0, 3), st.just(0.1) | wild, st.just(1.0) | wild)


@given(reports(), st.none() | reports(), parities, st.booleans())
def test_even_with_gates_wide_open_only_finite_numbers_on_some_evidence_pass(
    challenger: EvalReport, champion: EvalReport | None, parity: ParityReport, has_parent: bool
) -> None:
    judged = judge(result(challenger, champion, parity=parity), LENIENT, parent=1 if has_parent else None)
    if judged.outcome is not Outcome.PASS:
        return
    needed = [
        challenger.accuracy,
        challenger.macro_f1,
        challenger.latency_ms_p99,
        parity.max_abs_diff,
        parity.agreement,
    ]
    needed += [score.recall for score in challenger.per_class.values()]
    if has_parent:
        assert champion is not None
        assert champion.eval_set == challenger.eval_set
        needed += [one.slices[name].macro_f1 for one in (challenger, champion) for name in ("recent", "past")]
    assert challenger.slices["recent"].examples >= 1
    assert challenger.eval_set
    assert parity.texts > 0
    assert all(math.isfinite(number) for number in needed)


# --- int8 ---

NEARLY = ParityReport(200, 1.2, 0.96)  # no fp32 artefact could pass with it


@pytest.mark.parametrize(
    ("report", "outcome"),
    [
        (QuantizationReport(300, 0.95, 0.795, 0.80), Outcome.PASS),
        (QuantizationReport(300, 0.90, 0.79, 0.80), Outcome.PASS),
        (QuantizationReport(300, 0.95, 0.85, 0.80), Outcome.PASS),  # better is no loss
        (QuantizationReport(300, 0.89, 0.80, 0.80), Outcome.FAIL),
        (QuantizationReport(300, 0.95, 0.78, 0.80), Outcome.FAIL),
        (QuantizationReport(0, 1.0, 0.80, 0.80), Outcome.INCONCLUSIVE),
        (QuantizationReport(300, math.nan, 0.80, 0.80), Outcome.INCONCLUSIVE),
        (QuantizationReport(300, 0.95, math.nan, 0.80), Outcome.INCONCLUSIVE),
        (QuantizationReport(300, 0.95, 0.80, math.inf), Outcome.INCONCLUSIVE),
        (None, Outcome.INCONCLUSIVE),
    ],
)
def test_int8_is_judged_by_its_own_limits(report: QuantizationReport | None, outcome: Outcome) -> None:
    judged = verdict(evaluation(), evaluation(), precision="int8", parity=NEARLY, quantization=report)
    assert judged.outcome is outcome
    assert outcomes(judged) == ({} if outcome is Outcome.PASS else {"quantization": outcome})


def test_a_version_in_fp32_says_why_it_is_not_in_int8_and_is_held_to_parity() -> None:
    refused = QuantizationReport(300, 0.8, 0.80, 0.80)
    judged = verdict(evaluation(), evaluation(), quantization=refused)
    assert judged.outcome is Outcome.PASS
    [reason] = [gate.reason for gate in judged.gates if gate.gate == "quantization"]
    assert reason == (
        "served in fp32, for int8 did not pass: agreement of int8 with fp32 80.00%, at least 90.00% asked"
    )
    judged = verdict(evaluation(), evaluation(), quantization=refused, parity=NEARLY)
    assert outcomes(judged) == {"parity": Outcome.FAIL}
