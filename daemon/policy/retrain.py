"""When to train. Pure: one frozen picture of the stream, the champion and the runs in, one decision with its reasons out.

Every enabled trigger is asked and says why it fired or did not. What holds a run back (pause, cool-down, backoff, runs a
day) is asked afterwards, so that a decision to wait still names the triggers that wanted a run.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from daemon.core import types
from daemon.core.errors import RunPutOff
from daemon.core.facts import Facts, Performance
from daemon.core.states import Action, TriggerKind
from daemon.core.types import Decision, DriftReport, StoredDecision, Trigger
from daemon.policy.schema import Policy
from daemon.settings.units import format_duration

LONGEST_BACKOFF = timedelta(hours=6)

_BEGUN_AGAIN = {
    types.DISK: "once there is room and the cool-down is over",
    types.STOP: "by the learner's next start, unless learning is paused then",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one trigger says."""

    fired: bool
    reason: str


Rule = Callable[[Facts, Policy], Answer]


def decide(facts: Facts, policy: Policy) -> Decision:
    """TRAIN, WAIT or ROLL_BACK. An operator's request needs no cool-down, but neither it nor a trigger works while paused.

    A pause holds back runs: it does not leave servers with a champion that all of them refuse.
    """
    if facts.operator_request is not None:
        return _decide_for_operator(facts, facts.operator_request, policy)
    if facts.refused_everywhere and facts.previous is not None and policy.rollout.on_refusal == "roll_back":
        reasons = [f"every server refuses champion {facts.champion}: {_told(facts)}"]
        back = _decision(facts, policy, Action.ROLL_BACK, [], reasons, by="policy")
        return replace(back, version=facts.previous)
    answers = {kind: rule(facts, policy) for kind, rule in _rules(facts, policy).items()}
    triggers = [Trigger(kind, answer.reason) for kind, answer in answers.items() if answer.fired]
    holds = _holds(facts, policy) if triggers else [*_pause(facts), *_refusals(facts)]
    reasons = [*holds, *(_sentence(kind, answer) for kind, answer in answers.items())]
    action = Action.TRAIN if triggers and not holds else Action.WAIT
    return _decision(facts, policy, action, triggers, reasons, by="policy")


def heard(asked: Iterable[StoredDecision], now: datetime, policy: Policy, *, paused: bool) -> Sequence[StoredDecision]:
    """What of all that was not carried out yet asks for a run now.

    What was put off waits for the end of a pause, which would else be its own end; what the disk put off also for the cool-down,
    so that a run that fills the disk by itself does not do so again and again. An operator who asks anew is not given two runs.
    """
    requests = [each for each in asked if each.decision.action is Action.RETRAIN]
    rested = now - policy.triggers.cooldown
    return requests if any(_is_due(each.decision, rested, paused=paused) for each in requests) else []


def _is_due(request: Decision, rested: datetime, *, paused: bool) -> bool:
    match request.by:
        case types.DISK:
            return request.at <= rested and not paused
        case types.STOP:
            return not paused
        case _:
            return True


def asked_again(decision: Decision, run_id: str, why: RunPutOff, at: datetime) -> Decision | None:
    """An operator's request, of a run that was put off; None where `decision` began the run without one."""
    request = decision.evidence["operator_request"]
    if request is None:
        return None
    return Decision(
        at=at,
        action=Action.RETRAIN,
        reasons=[f"run {run_id} was cancelled: {why}", f"it is begun again {_BEGUN_AGAIN[why.by]}"],
        policy_hash=decision.policy_hash,
        by=why.by,
        run_id=run_id,
        evidence={"request": request},
    )


def _decide_for_operator(facts: Facts, request: str, policy: Policy) -> Decision:
    holds = _pause(facts)
    if facts.examples == 0:
        holds.append("held back: the store has no train examples yet")
    action = Action.WAIT if holds else Action.TRAIN
    reasons = [*holds, f"operator: {request}"]
    return _decision(facts, policy, action, [Trigger(TriggerKind.OPERATOR, request)], reasons, by="operator")


def _decision(
    facts: Facts, policy: Policy, action: Action, triggers: list[Trigger], reasons: list[str], *, by: str
) -> Decision:
    return Decision(
        at=facts.now,
        action=action,
        reasons=reasons,
        policy_hash=policy.hash,
        by=by,
        triggers=triggers,
        evidence=evidence(facts),
    )


def _sentence(kind: TriggerKind, answer: Answer) -> str:
    return f"{kind}: {answer.reason}" if answer.fired else f"not {kind}: {answer.reason}"


# --- triggers -----------------------------------------------------------------------------------------------------


def _rules(facts: Facts, policy: Policy) -> Mapping[TriggerKind, Rule]:
    """Without a champion there is nothing to compare with: only the bootstrap can want a run."""
    if facts.champion is None:
        return {TriggerKind.BOOTSTRAP: _bootstrap}
    triggers = policy.triggers
    switches: Iterable[tuple[bool, TriggerKind, Rule]] = (
        (triggers.drift.enabled, TriggerKind.DRIFT, _drift),
        (triggers.performance.enabled, TriggerKind.PERFORMANCE, _performance),
        (triggers.volume.enabled, TriggerKind.VOLUME, _volume),
        (triggers.schedule.enabled, TriggerKind.SCHEDULE, _schedule),
    )
    return {kind: rule for enabled, kind, rule in switches if enabled}


def _bootstrap(facts: Facts, policy: Policy) -> Answer:
    needed = policy.triggers.bootstrap.min_examples
    if facts.examples < needed:
        return Answer(False, f"no champion yet, and {facts.examples} train examples of the {needed} a first run needs")
    if facts.new_examples == 0:
        return Answer(False, "no champion yet, and no new train example since the last run")
    return Answer(True, f"no champion yet, and {facts.examples} train examples, {needed} needed")


def _drift(facts: Facts, policy: Policy) -> Answer:
    drift, needed = facts.drift, policy.drift.confirmations
    if drift is None:
        return Answer(False, f"drift has not been measured{_without_late(facts)}")
    if not drift.conclusive:
        return Answer(False, f"drift is unknown: {drift.detail}")
    if not drift.drifted:
        return Answer(False, drift.detail)
    if facts.drift_in_a_row < needed:
        return Answer(False, f"{drift.detail}, seen {facts.drift_in_a_row} of {needed} times in a row")
    if too_few := _too_few_new(facts, 1):
        return Answer(False, f"{drift.detail}, but {too_few}")
    gathered, wanted = facts.drifted_examples, policy.triggers.drift.min_new_examples
    if gathered < wanted:
        return Answer(False, f"{drift.detail}, but only {gathered} train examples since it began, {wanted} needed")
    return Answer(True, f"{drift.detail}, seen {facts.drift_in_a_row} times in a row")


def _performance(facts: Facts, policy: Policy) -> Answer:
    seen, rule = facts.performance, policy.triggers.performance
    if seen is None:
        return Answer(False, f"the champion has not been scored on new examples{_without_late(facts)}")
    if not (math.isfinite(seen.accuracy) and math.isfinite(seen.baseline)):
        return Answer(False, f"unknown: accuracy {seen.accuracy} against {seen.baseline} is not finite")
    if seen.examples < rule.min_examples:
        return Answer(
            False, f"scored on {seen.examples} new examples, {rule.min_examples} needed{_without_late(facts)}"
        )
    drop = round(seen.baseline - seen.accuracy, 9)
    told = (
        f"accuracy {seen.accuracy:.1%} on {seen.examples} new examples, {seen.baseline:.1%} at promotion; "
        f"a drop of {drop * 100:.1f} points, {rule.max_drop * 100:.1f} allowed"
    )
    if drop > rule.max_drop and (too_few := _too_few_new(facts, 1)):
        return Answer(False, f"{told}, but {too_few}")
    return Answer(drop > rule.max_drop, told)


def _without_late(facts: Facts) -> str:
    return f"; drift.max_lateness leaves out {facts.late_examples}" if facts.late_examples else ""


def _volume(facts: Facts, policy: Policy) -> Answer:
    needed = policy.triggers.volume.new_examples
    return Answer(facts.new_examples >= needed, f"{facts.new_examples} new train examples, {needed} start a run")


def _schedule(facts: Facts, policy: Policy) -> Answer:
    if not facts.schedule_due:
        return Answer(False, f"not due ('{policy.triggers.schedule.cron}' UTC)")
    if too_few := _too_few_new(facts, 1):
        return Answer(False, f"due ('{policy.triggers.schedule.cron}' UTC), but {too_few}")
    return Answer(True, f"due ('{policy.triggers.schedule.cron}' UTC)")


def _too_few_new(facts: Facts, needed: int) -> str | None:
    """A run on what the last run saw already would give the same version again, so at least one is always needed."""
    needed = max(needed, 1)
    if facts.new_examples >= needed:
        return None
    return f"{facts.new_examples} new train examples since the last run, {needed} needed"


# --- what holds a run back ----------------------------------------------------------------------------------------


def _holds(facts: Facts, policy: Policy) -> list[str]:
    return [*_pause(facts), *_refusals(facts), *_waits(facts, policy), *_runs_a_day(facts, policy)]


def _pause(facts: Facts) -> list[str]:
    return ["held back: learning is paused; `relearnd resume` ends that"] if facts.paused else []


def _refusals(facts: Facts) -> list[str]:
    if not facts.refusals:
        return []
    return [
        f"held back: {len(facts.refusals)} of {facts.servers} servers refuse champion {facts.champion}: {_told(facts)}; "
        "`relearnd rollback` or `relearnd promote N` ends that"
    ]


def _told(facts: Facts) -> str:
    return "; ".join(f"{server}: {reason}" for server, reason in sorted(facts.refusals.items()))


def _waits(facts: Facts, policy: Policy) -> Iterable[str]:
    if facts.last_run_finished_at is None:
        return
    since = facts.now - facts.last_run_finished_at
    for name, least in (
        ("cool-down", policy.triggers.cooldown),
        ("failure backoff", backoff(facts.failed_runs_in_a_row, policy.triggers.failure_backoff)),
    ):
        if since < least:
            yield (
                f"held back: {name} of {format_duration(least)}, "
                f"{(least - since).total_seconds():.0f} s left since the last run ended"
            )


def _runs_a_day(facts: Facts, policy: Policy) -> list[str]:
    most = policy.triggers.max_runs_per_day
    if facts.runs_last_day < most:
        return []
    return [f"held back: {facts.runs_last_day} runs in the last 24 hours, {most} allowed"]


def backoff(failed_in_a_row: int, first: timedelta) -> timedelta:
    """Wait after so many failed runs: `first`, doubled for each further failure, at most 6 hours; none after a success."""
    if failed_in_a_row == 0:
        return timedelta()
    doublings = min(failed_in_a_row - 1, 40)
    return timedelta(seconds=min(first.total_seconds() * 2**doublings, LONGEST_BACKOFF.total_seconds()))


# --- evidence -----------------------------------------------------------------------------------------------------


def evidence(facts: Facts) -> dict[str, Any]:
    """The facts as plain JSON values; a number that is not finite becomes null."""
    return {
        "examples": facts.examples,
        "new_examples": facts.new_examples,
        "champion": facts.champion,
        "last_run_finished_at": facts.last_run_finished_at.isoformat() if facts.last_run_finished_at else None,
        "failed_runs_in_a_row": facts.failed_runs_in_a_row,
        "runs_last_day": facts.runs_last_day,
        "drift": _drift_evidence(facts.drift) if facts.drift else None,
        "drift_in_a_row": facts.drift_in_a_row,
        "drifted_examples": facts.drifted_examples,
        "performance": _performance_evidence(facts.performance) if facts.performance else None,
        "late_examples": facts.late_examples,
        "schedule_due": facts.schedule_due,
        "operator_request": facts.operator_request,
        "paused": facts.paused,
        "previous": facts.previous,
        "servers": facts.servers,
        "refusals": dict(facts.refusals),
    }


def _drift_evidence(drift: DriftReport) -> dict[str, Any]:
    return {
        "drifted": drift.drifted,
        "detail": drift.detail,
        "reference_examples": drift.reference_examples,
        "current_examples": drift.current_examples,
        "current_from_seq": drift.current_from_seq,
        "current_to_seq": drift.current_to_seq,
        "columns": {
            column.column: {
                "method": column.method,
                "score": column.score,
                "threshold": column.threshold,
                "drifted": column.drifted,
                "error": column.error,
            }
            for column in drift.columns
        },
    }


def _performance_evidence(seen: Performance) -> dict[str, Any]:
    return {
        "examples": seen.examples,
        "accuracy": seen.accuracy if math.isfinite(seen.accuracy) else None,
        "baseline": seen.baseline if math.isfinite(seen.baseline) else None,
    }
