"""Whether a challenger may be promoted. Pure: what the worker measured in, one result a gate with its reason out.

Each gate answers pass, fail or inconclusive. A number that is missing, not finite or outside its range is inconclusive, and
only a verdict in which every gate passed can ever promote.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from daemon.core.states import Outcome
from daemon.core.types import EvalReport, GateResult, QuantizationReport, RunResult, SliceScore, Verdict
from daemon.policy.schema import (
    EvidenceGate,
    ExportPolicy,
    FloorGate,
    LatencyGate,
    NonInferiorityGate,
    ParityGate,
    PerClassGate,
    Policy,
)

_ROUNDING = 1e-9  # so that 0.80 - 0.03 is not above 0.77
_HOW_TO_GET_EVIDENCE = "wait for more, take labels that never come off task.labels, or lower gates.evidence"


def judge(result: RunResult, policy: Policy, *, parent: int | None) -> Verdict:
    """All gates of the policy. `parent` is the champion the challenger must be compared with, None for a first version."""
    gates, challenger = policy.gates, result.challenger
    results = (
        evidence(challenger, result.labels, gates.evidence),
        floor(challenger, gates.floor),
        non_inferiority(challenger, result.champion, gates.non_inferiority, parent=parent),
        per_class(challenger, result.labels, gates.per_class),
        parity(result, gates.parity),
        *([quantization(result, policy.export)] if result.quantization or result.precision == "int8" else []),
        latency(challenger, gates.latency),
    )
    return Verdict(_together(gate.outcome for gate in results), results)


def judged_from(result: RunResult) -> dict[str, Any]:
    """What the verdict rests on, as plain JSON values."""
    return {
        "challenger": asdict(result.challenger),
        "champion": asdict(result.champion) if result.champion else None,
        "parity": asdict(result.parity),
        "training": asdict(result.training),
    }


def sum_up(verdict: Verdict) -> str:
    """What decided it, in one line."""
    unmet = [gate for gate in verdict.gates if gate.outcome != verdict.outcome]
    telling = [gate for gate in verdict.gates if gate.outcome == verdict.outcome]
    return "all gates passed" if not unmet else "; ".join(f"{gate.gate}: {gate.reason}" for gate in telling)


def evidence(challenger: EvalReport, labels: Sequence[str], gate: EvidenceGate) -> GateResult:
    """Enough recent holdout examples, and enough of each label that the version can answer."""
    recent = challenger.slices.get("recent")
    count = recent.examples if recent else 0
    found = [_verdict_on_count("recent holdout examples", count, gate.min_examples)]
    for label in labels:
        score = challenger.per_class.get(label)
        support = score.support if score else 0
        found.append(_verdict_on_count(f"holdout examples of '{label}'", support, gate.min_per_class))
    if any(outcome is not Outcome.PASS for outcome, _ in found):
        found.append((Outcome.INCONCLUSIVE, _HOW_TO_GET_EVIDENCE))
    if not challenger.eval_set:
        found.append((Outcome.INCONCLUSIVE, "the report does not say which rows it was made on"))
    return _gate("evidence", found)


def floor(challenger: EvalReport, gate: FloorGate) -> GateResult:
    """Absolute accuracy and macro F1 on the whole holdout, and accuracy on the operator's anchor if that is asked for."""
    found = [
        _at_least("accuracy", challenger.accuracy, gate.accuracy),
        _at_least("macro F1", challenger.macro_f1, gate.macro_f1),
    ]
    if gate.anchor_accuracy > 0:
        anchor = challenger.slices.get("anchor")
        found.append(_at_least("accuracy on the anchor", anchor.accuracy if anchor else math.nan, gate.anchor_accuracy))
    return _gate("floor", found)


def non_inferiority(
    challenger: EvalReport, champion: EvalReport | None, gate: NonInferiorityGate, *, parent: int | None
) -> GateResult:
    """Not below the champion on recent nor on past examples, each with its margin; both scored on the same rows."""
    if parent is None:
        return GateResult("non_inferiority", Outcome.PASS, "no champion to compare with")
    if champion is None:
        return GateResult("non_inferiority", Outcome.INCONCLUSIVE, f"the champion, version {parent}, was not scored")
    if challenger.eval_set != champion.eval_set:
        return GateResult(
            "non_inferiority", Outcome.INCONCLUSIVE, "challenger and champion were scored on different rows"
        )
    return _gate(
        "non_inferiority",
        [
            _not_below("recent", challenger, champion, gate.metric, gate.recent_margin),
            _not_below("past", challenger, champion, gate.metric, gate.past_margin),
        ],
    )


def per_class(challenger: EvalReport, labels: Sequence[str], gate: PerClassGate) -> GateResult:
    """Recall of each label with enough support to be judged alone."""
    if not challenger.per_class:
        return GateResult("per_class", Outcome.INCONCLUSIVE, "no label was scored")
    scores = {label: challenger.per_class[label] for label in labels if label in challenger.per_class}
    found = [
        _at_least(f"recall of '{label}'", score.recall, gate.min_recall)
        for label, score in scores.items()
        if score.support >= gate.min_support
    ]
    if not found:
        return GateResult(
            "per_class", Outcome.PASS, f"no label has the {gate.min_support} holdout examples to be judged alone"
        )
    return _gate("per_class", found)


def parity(result: RunResult, gate: ParityGate) -> GateResult:
    """The ONNX artefact answers as the torch model does. One in int8 does not quite: `quantization` judges how far."""
    if result.precision == "int8":
        return GateResult("parity", Outcome.PASS, "served in int8, which the gate quantization judges")
    if result.parity.texts <= 0:
        return GateResult("parity", Outcome.INCONCLUSIVE, "no text was compared")
    return _gate(
        "parity",
        [
            _at_most("largest logit difference", result.parity.max_abs_diff, gate.max_abs_diff),
            _at_least("equal answers", result.parity.agreement, gate.min_agreement),
        ],
    )


def quantization(result: RunResult, limits: ExportPolicy) -> GateResult:
    """int8 is near enough to fp32. A version in fp32 passes, with why it is not in int8."""
    judged = quantized_well(result.quantization, limits)
    if result.precision == "fp32":
        return GateResult("quantization", Outcome.PASS, f"served in fp32, for int8 did not pass: {judged.reason}")
    return judged


def quantized_well(report: QuantizationReport | None, limits: ExportPolicy) -> GateResult:
    """Whether int8 may be served, by the worker's own comparison."""
    if report is None or report.examples <= 0:
        return GateResult("quantization", Outcome.INCONCLUSIVE, "int8 was compared with fp32 on no example")
    drop = report.fp32_accuracy - report.accuracy
    known = _is_share(report.accuracy) and _is_share(report.fp32_accuracy)
    return _gate(
        "quantization",
        [
            _at_least("agreement of int8 with fp32", report.agreement, limits.min_agreement),
            (
                (Outcome.PASS if drop <= limits.max_accuracy_drop + _ROUNDING else Outcome.FAIL)
                if known
                else Outcome.INCONCLUSIVE,
                f"accuracy {report.accuracy:.2%} in int8, {report.fp32_accuracy:.2%} in fp32, "
                f"{limits.max_accuracy_drop * 100:.2f} points of loss allowed",
            ),
        ],
    )


def latency(challenger: EvalReport, gate: LatencyGate) -> GateResult:
    """99th percentile of single-text inference, milliseconds. Zero is no measurement."""
    if challenger.latency_ms_p99 == 0:
        return GateResult("latency", Outcome.INCONCLUSIVE, "p99 was not measured")
    return _gate("latency", [_at_most("p99 in ms", challenger.latency_ms_p99, gate.max_p99_ms)])


# --- one number against one limit ---------------------------------------------------------------------------------

Finding = tuple[Outcome, str]


def _verdict_on_count(what: str, count: int, needed: int) -> Finding:
    return Outcome.PASS if count >= needed else Outcome.INCONCLUSIVE, f"{count} {what}, {needed} needed"


def _at_least(what: str, share: float, least: float) -> Finding:
    if not _is_share(share):
        return Outcome.INCONCLUSIVE, f"{what} is {share}, not a share"
    outcome = Outcome.PASS if share >= least - _ROUNDING else Outcome.FAIL
    return outcome, f"{what} {share:.2%}, at least {least:.2%} asked"


def _at_most(what: str, value: float, most: float) -> Finding:
    if not (math.isfinite(value) and value >= 0):
        return Outcome.INCONCLUSIVE, f"{what} is {value}, not a measurement"
    return Outcome.PASS if value <= most else Outcome.FAIL, f"{what} {value:.4g}, at most {most:.4g} allowed"


def _not_below(name: str, challenger: EvalReport, champion: EvalReport, metric: str, margin: float) -> Finding:
    ours, theirs = challenger.slices.get(name), champion.slices.get(name)
    if ours is None or theirs is None or ours.examples == 0 or ours.examples != theirs.examples:
        return Outcome.INCONCLUSIVE, f"the {name} slice was not scored for both"
    value, bar = _metric(ours, metric), _metric(theirs, metric)
    if not (_is_share(value) and _is_share(bar)):
        return Outcome.INCONCLUSIVE, f"{name} {metric} is {value} against {bar}, not two shares"
    outcome = Outcome.PASS if value >= bar - margin - _ROUNDING else Outcome.FAIL
    return outcome, (
        f"{name} {metric} {value:.2%} against the champion's {bar:.2%} on {ours.examples} examples "
        f"({(value - bar) * 100:+.2f} points, {-margin * 100:.2f} allowed)"
    )


def _metric(score: SliceScore, metric: str) -> float:
    return score.accuracy if metric == "accuracy" else score.macro_f1


def _is_share(value: float) -> bool:
    return math.isfinite(value) and 0.0 <= value <= 1.0


# --- adding up ----------------------------------------------------------------------------------------------------


def _gate(name: str, found: Sequence[Finding]) -> GateResult:
    """The worst outcome, with the reasons for it; when all passed, all reasons."""
    outcome = _together(outcome for outcome, _ in found)
    return GateResult(name, outcome, "; ".join(reason for each, reason in found if each is outcome))


def _together(outcomes: Iterable[Outcome]) -> Outcome:
    every = set(outcomes)
    if Outcome.FAIL in every:
        return Outcome.FAIL
    return Outcome.PASS if every == {Outcome.PASS} else Outcome.INCONCLUSIVE
