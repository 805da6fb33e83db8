"""When a run starts: each trigger, what holds it back, and that the decision says why in either case."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.facts import Facts, Performance
from daemon.core.states import Action, TriggerKind
from daemon.core.types import ColumnDrift, DriftReport
from daemon.policy import cron
from daemon.policy.retrain import backoff, decide
from daemon.policy.schema import Policy

NOW = datetime(2030, 1, 1, tzinfo=UTC)
POLICY = Policy()
WITH_SCHEDULE = Policy.model_validate({"triggers": {"schedule": {"enabled": True}}})


def report(*, drifted: bool, score: float | None = 0.9) -> DriftReport:
    column = ColumnDrift("text", "abs_text_content_drift", score, 0.65, drifted, None if score else "constant")
    return DriftReport(
        at=NOW,
        reference_examples=2000,
        current_examples=1000,
        current_from_seq=2001,
        current_to_seq=3000,
        columns=[column],
        drifted=drifted,
        detail="1 of 1 columns drifted" if drifted else "0 of 1 columns drifted",
    )


DRIFT = report(drifted=True)
QUIET = Facts(
    now=NOW,
    examples=10_000,
    new_examples=1000,
    champion=3,
    last_run_finished_at=NOW - timedelta(days=1),
    failed_runs_in_a_row=0,
    runs_last_day=0,
    drift=report(drifted=False),
    drift_in_a_row=0,
    drifted_examples=0,
    performance=Performance(1000, 0.80, 0.80),
    schedule_due=False,
    operator_request=None,
    paused=False,
)
DRIFTING = {"drift": DRIFT, "drift_in_a_row": 2, "drifted_examples": 500}
DRIFTED = replace(QUIET, **DRIFTING)


def kinds(facts: Facts, policy: Policy = POLICY) -> list[TriggerKind]:
    return [trigger.kind for trigger in decide(facts, policy).triggers]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"drift": None}, "not drift: drift has not been measured; drift.max_lateness leaves out 7"),
        (
            {"performance": None},
            "not performance: the champion has not been scored on new examples; drift.max_lateness leaves out 7",
        ),
        (
            {"performance": Performance(3, 0.1, 0.8)},
            "not performance: scored on 3 new examples, 200 needed; drift.max_lateness leaves out 7",
        ),
    ],
)
def test_where_too_little_was_seen_the_late_examples_are_named(changes: dict[str, Any], reason: str) -> None:
    assert reason in decide(replace(QUIET, **changes, late_examples=7), POLICY).reasons
    assert not any("late" in said for said in decide(replace(QUIET, **changes), POLICY).reasons)


@pytest.mark.parametrize(
    ("changes", "triggers"),
    [
        ({}, []),
        # drift
        ({"drift": DRIFT, "drift_in_a_row": 2, "drifted_examples": 500}, ["drift"]),
        ({"drift": DRIFT, "drift_in_a_row": 1}, []),
        ({"drift": DRIFT, "drift_in_a_row": 2, "drifted_examples": 499}, []),
        ({"drift": DRIFT, "drift_in_a_row": 2, "drifted_examples": 500, "new_examples": 0}, []),
        ({"drift": report(drifted=True, score=None), "drift_in_a_row": 9}, []),
        ({"drift": None, "drift_in_a_row": 9}, []),
        # performance
        ({"performance": Performance(1000, 0.74, 0.80)}, ["performance"]),
        ({"performance": Performance(1000, 0.75, 0.80)}, []),
        ({"performance": Performance(199, 0.10, 0.80)}, []),
        ({"performance": Performance(1000, math.nan, 0.80)}, []),
        ({"performance": Performance(1000, 0.10, math.inf)}, []),
        ({"performance": None}, []),
        ({"performance": Performance(1000, 0.10, 0.80), "new_examples": 0}, []),
        # volume
        ({"new_examples": 20_000}, ["volume"]),
        ({"new_examples": 19_999}, []),
        # schedule
        ({"schedule_due": True}, ["schedule"]),
        ({"schedule_due": True, "new_examples": 0}, []),
        # several at once
        (
            {**DRIFTING, "new_examples": 20_000, "performance": Performance(1000, 0.1, 0.8)},
            ["drift", "performance", "volume"],
        ),
        # without a champion only the bootstrap counts
        ({"champion": None, "examples": 1000}, ["bootstrap"]),
        ({"champion": None, "examples": 999, "drift": DRIFT, "drift_in_a_row": 2}, []),
        ({"champion": None, "examples": 1000, "new_examples": 0}, []),
        # an operator's request is the only reason named
        ({"operator_request": "kim: try it", "drift": DRIFT, "drift_in_a_row": 2}, ["operator"]),
    ],
)
def test_a_run_starts_exactly_when_a_trigger_says_so(changes: dict[str, Any], triggers: list[str]) -> None:
    decision = decide(replace(QUIET, **changes), WITH_SCHEDULE)
    assert [trigger.kind for trigger in decision.triggers] == triggers
    assert decision.action is (Action.TRAIN if triggers else Action.WAIT)


def test_a_trigger_that_is_switched_off_neither_fires_nor_is_talked_about() -> None:
    off = Policy.model_validate(
        {"triggers": {name: {"enabled": False} for name in ("drift", "performance", "volume", "schedule")}}
    )
    decision = decide(replace(DRIFTED, new_examples=10**6, schedule_due=True), off)
    assert (decision.action, list(decision.reasons)) == (Action.WAIT, [])


def test_every_enabled_trigger_says_why_it_did_not_fire() -> None:
    reasons = list(decide(QUIET, WITH_SCHEDULE).reasons)
    assert [reason.split(":")[0] for reason in reasons] == [
        "not drift",
        "not performance",
        "not volume",
        "not schedule",
    ]
    assert "1000 new train examples, 20000 start a run" in reasons[2]


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"paused": True}, "learning is paused"),
        ({"last_run_finished_at": NOW - timedelta(minutes=29)}, "cool-down of 30m, 60 s left"),
        ({"failed_runs_in_a_row": 5, "last_run_finished_at": NOW - timedelta(minutes=79)}, "backoff of 80m, 60 s left"),
        ({"runs_last_day": 24}, "24 runs in the last 24 hours, 24 allowed"),
    ],
)
def test_what_holds_a_run_back_is_named_beside_the_trigger_that_wanted_it(
    changes: dict[str, Any], because: str
) -> None:
    decision = decide(replace(DRIFTED, **changes), POLICY)
    assert decision.action is Action.WAIT
    assert [trigger.kind for trigger in decision.triggers] == [TriggerKind.DRIFT]
    assert decision.reasons[0].startswith("held back: ")
    assert because in decision.reasons[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"last_run_finished_at": NOW - timedelta(minutes=30)},
        {"last_run_finished_at": None},
        {"failed_runs_in_a_row": 5, "last_run_finished_at": NOW - timedelta(minutes=80)},
        {"runs_last_day": 23},
    ],
)
def test_a_hold_ends(changes: dict[str, Any]) -> None:
    assert decide(replace(DRIFTED, **changes), POLICY).action is Action.TRAIN


def test_an_operator_waits_for_no_cool_down_backoff_or_runs_a_day() -> None:
    busy = replace(
        QUIET,
        operator_request="kim: new labels are in",
        last_run_finished_at=NOW,
        failed_runs_in_a_row=9,
        runs_last_day=99,
        champion=None,
        examples=1,
    )
    decision = decide(busy, POLICY)
    assert (decision.action, decision.by) == (Action.TRAIN, "operator")
    assert "kim: new labels are in" in decision.reasons[-1]


@pytest.mark.parametrize(("changes", "because"), [({"paused": True}, "paused"), ({"examples": 0}, "no train examples")])
def test_an_operator_is_told_why_even_a_request_waits(changes: dict[str, Any], because: str) -> None:
    decision = decide(replace(QUIET, operator_request="kim: go", **changes), POLICY)
    assert decision.action is Action.WAIT
    assert because in decision.reasons[0]


def test_the_backoff_doubles_up_to_six_hours() -> None:
    first = timedelta(minutes=5)
    assert [backoff(failed, first).total_seconds() / 60 for failed in (0, 1, 2, 3, 7, 8, 1000)] == [
        0, 5, 10, 20, 320, 360, 360,
    ]  # fmt: skip


facts = st.builds(
    Facts,
    now=st.just(NOW),
    examples=st.integers(0, 10**6),
    new_examples=st.integers(0, 10**6),
    champion=st.none() | st.integers(1, 9),
    last_run_finished_at=st.none() | st.timedeltas(timedelta(0), timedelta(days=2)).map(lambda ago: NOW - ago),
    failed_runs_in_a_row=st.integers(0, 50),
    runs_last_day=st.integers(0, 30),
    drift=st.none() | st.builds(report, drifted=st.booleans(), score=st.none() | st.floats(0, 1)),
    drift_in_a_row=st.integers(0, 5),
    drifted_examples=st.integers(0, 1000),
    performance=st.none() | st.builds(Performance, st.integers(0, 5000), st.floats(), st.floats()),
    schedule_due=st.booleans(),
    operator_request=st.none() | st.just("kim: go"),
    paused=st.booleans(),
)


@given(facts)
def test_whatever_the_facts_a_run_has_a_trigger_and_a_pause_stops_it(facts: Facts) -> None:
    decision = decide(facts, WITH_SCHEDULE)
    assert decision.reasons
    if decision.action is Action.TRAIN:
        assert decision.triggers
        assert not facts.paused
        assert facts.operator_request or facts.runs_last_day < 24
    else:
        assert not decision.triggers or decision.reasons[0].startswith("held back: ")
    assert decide(facts, WITH_SCHEDULE) == decision


@given(facts)
def test_the_evidence_is_json_without_nan(facts: Facts) -> None:
    json.dumps(decide(facts, POLICY).evidence, allow_nan=False)


# --- the schedule ---

values = st.one_of(
    st.just("*"),
    st.integers(0, 62).map(str),
    st.tuples(st.integers(0, 62), st.integers(0, 62)).map(lambda ends: f"{ends[0]}-{ends[1]}"),
    st.sampled_from(
        ["mon", "sun", "mon-fri", "fri-mon", "jan", "jan-mar", "mon/2", "last", "1st mon", "monday", "?", ""]
    ),
)
expressions = st.tuples(values, st.sampled_from(["", "", "", "/1", "/2", "/15", "/0", "/70", "/x"])).map("".join)
fields = st.lists(expressions, min_size=1, max_size=2).map(",".join)


@given(st.lists(fields, min_size=4, max_size=6).map(" ".join))
def test_a_schedule_that_is_accepted_is_one_that_the_scheduler_takes(text: str) -> None:
    try:
        cron.checked(text)
    except ValueError:
        return
    CronTrigger.from_crontab(text, timezone=UTC)


@pytest.mark.parametrize("text", ["0 3 * * sun", "*/15 0-6/2,22 1,15 jan-mar mon-fri", "0 0 31 12 *", "5/10 * * * *"])
def test_usual_schedules_are_accepted(text: str) -> None:
    assert cron.checked(text) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("0 3 * * 0", "write days as names"),
        ("0 3 * * 1-5", "write days as names"),
        ("60 3 * * *", "minute '60' is not between 0 and 59"),
        ("0 24 * * *", "hour '24' is not between 0 and 23"),
        ("0 3 0 * *", "day of month '0'"),
        ("0 3 * * fri-mon", "from low to high"),
        ("*/60 3 * * *", "the step is a whole number from 1 to 59"),
        ("0 3 * * mon/2", "names take no step"),
        ("@daily", "has 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_field(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        cron.checked(text)


# --- what servers make of the champion ---

REFUSED = {"servers": 2, "refusals": {"a": "another sha256"}, "previous": 2}
REFUSED_BY_ALL = {**REFUSED, "refusals": {"a": "another sha256", "b": "another sha256"}}
ROLLING_BACK = POLICY.model_copy(update={"rollout": POLICY.rollout.model_copy(update={"on_refusal": "roll_back"})})


@pytest.mark.parametrize(
    ("changes", "policy", "action"),
    [
        (REFUSED, POLICY, "wait"),
        (REFUSED, ROLLING_BACK, "wait"),
        (REFUSED_BY_ALL, POLICY, "wait"),
        (REFUSED_BY_ALL, ROLLING_BACK, "roll_back"),
        ({**REFUSED_BY_ALL, "paused": True}, ROLLING_BACK, "roll_back"),
        ({**REFUSED_BY_ALL, "previous": None}, ROLLING_BACK, "wait"),
        ({**REFUSED_BY_ALL, "servers": 3}, ROLLING_BACK, "wait"),
        ({"servers": 2}, ROLLING_BACK, "train"),
        ({**REFUSED_BY_ALL, "operator_request": "ada"}, ROLLING_BACK, "train"),
    ],
)
def test_a_refused_champion_holds_runs_back_and_may_be_rolled_back(
    changes: dict[str, Any], policy: Policy, action: str
) -> None:
    decision = decide(replace(DRIFTED, **changes), policy)
    assert decision.action == action
    if action != "train":
        assert "refuse" in decision.reasons[0] and "a: another sha256" in decision.reasons[0]
    assert decision.version == (2 if action == "roll_back" else None)
