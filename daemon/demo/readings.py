"""What the control API's answers say, as values. Pure, and patient with keys that are not there.

Seconds are counted from the start of the demo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """One column's drift score; None when it could not be computed."""

    score: float | None
    threshold: float | None
    drifted: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """One comparison of windows. `up_to` is how many examples were stored when it was made."""

    drifted: bool
    scores: Mapping[str, Score]
    up_to: int | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict on a challenger. The reports are EvalReport as JSON; `champion` is None when there was none to compare with."""

    outcome: str
    reasons: Sequence[str]
    unmet: Sequence[str]  # those of the reasons that did not pass
    challenger: Json
    champion: Json | None


@dataclass(frozen=True, slots=True)
class Decided:
    """One stored decision. `champion` is the version that answered when it was taken."""

    number: int
    at: float
    action: str
    reasons: Sequence[str]
    triggers: Sequence[str]
    version: int | None
    champion: int | None
    drift: Drift | None
    judged: Judged | None


@dataclass(frozen=True, slots=True)
class Going:
    """The run that is going; `step` is the worker's stage ("" before it says one)."""

    id: str
    step: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Status:
    """The learner at one moment."""

    stage: str
    stored: int
    dead_letters: int
    lag: int
    champion: int | None
    drift: Drift | None
    drift_in_a_row: int
    run: Going | None


def status(answer: Json) -> Status:
    """GET /v1/status."""
    stream = answer.get("stream") or {}
    return Status(
        stage=str(answer.get("stage") or "starting"),
        stored=int(stream.get("examples") or 0),
        dead_letters=int(stream.get("dead_letters") or 0),
        lag=int(stream.get("lag") or 0),
        champion=(answer.get("aliases") or {}).get("champion"),
        drift=_drift(answer.get("drift")),
        drift_in_a_row=int(answer.get("drift_in_a_row") or 0),
        run=_going(answer.get("run")),
    )


def decisions(answer: Json, *, started: float) -> list[Decided]:
    """GET /v1/decisions, the oldest first. `started` is the start of the demo in Unix seconds."""
    stored = answer.get("decisions") or ()
    return [_decided(one, started) for one in reversed(stored)]


def _decided(stored: Json, started: float) -> Decided:
    decision = stored["decision"]
    evidence = decision.get("evidence") or {}
    champion = evidence.get("champion")
    return Decided(
        number=int(stored["number"]),
        at=datetime.fromisoformat(decision["at"]).timestamp() - started,
        action=str(decision["action"]),
        reasons=[str(reason) for reason in decision.get("reasons") or ()],
        triggers=[str(trigger.get("kind")) for trigger in decision.get("triggers") or ()],
        version=decision.get("version"),
        champion=champion if isinstance(champion, int) else None,
        drift=_drift(evidence.get("drift")),
        judged=_judged(decision.get("verdict"), evidence),
    )


def _judged(verdict: Json | None, evidence: Json) -> Judged | None:
    if not verdict:
        return None
    gates = [(f"{g.get('gate')}: {g.get('outcome')}: {g.get('reason')}", g.get("outcome")) for g in verdict["gates"]]
    return Judged(
        outcome=str(verdict["outcome"]),
        reasons=[sentence for sentence, _ in gates],
        unmet=[sentence for sentence, outcome in gates if outcome != "pass"],
        challenger=evidence.get("challenger") or {},
        champion=evidence.get("champion"),
    )


def _drift(report: Json | None) -> Drift | None:
    """Columns come as a list of reports or, in a decision's evidence, by name."""
    if not report:
        return None
    columns = report.get("columns") or ()
    named = columns.items() if isinstance(columns, Mapping) else ((c.get("column"), c) for c in columns)
    scores = {
        str(name): Score(column.get("score"), column.get("threshold"), bool(column.get("drifted")))
        for name, column in named
    }
    return Drift(bool(report.get("drifted")), scores, report.get("current_to_seq"))


def _going(run: Json | None) -> Going | None:
    if not run:
        return None
    progress = run.get("progress") or {}
    return Going(
        id=str(run.get("id")),
        step=str(progress.get("stage") or ""),
        done=int(progress.get("done") or 0),
        total=int(progress.get("total") or 0),
        unit=str(progress.get("unit") or ""),
    )
