"""The end of the demo as data: `demo.json`, and the promises that were not kept, each as a sentence. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.demo.rounds import Round
from daemon.demo.scores import percentile, within
from daemon.demo.story import Story

SWAP_WINDOW_SECONDS = 1.0
SLICES = ("recent", "past")


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was produced against what the store says became of it; None when it could not be asked.

    `written` counts all records, malformed ones too.
    """

    written: int
    malformed: int
    stored: int | None
    dead_lettered: int | None
    lost: int | None
    twice: int | None


def ledger(written: int, malformed: int, coverage: Mapping[str, Any] | None) -> Ledger:
    """`coverage` is core.types.Coverage as JSON; lost and twice add to the store's own finding what only the producer knows."""
    if coverage is None:
        return Ledger(written, malformed, stored=None, dead_lettered=None, lost=None, twice=None)
    stored, dead = int(coverage["examples"]), int(coverage["dead_letters"])
    return Ledger(
        written=written,
        malformed=malformed,
        stored=stored,
        dead_lettered=dead,
        lost=int(coverage["lost"]) + max(written - stored - dead, 0),
        twice=int(coverage["twice"]) + int(coverage["repeated_ids"]),
    )


def report(story: Story, found: Ledger, *, broker: str) -> dict[str, Any]:
    """`demo.json`: every number finite or null."""
    answered = [asked for asked in story.asked if asked.version is not None]
    near_swap = within([asked.at for asked in answered], of=story.swaps, seconds=SWAP_WINDOW_SECONDS)
    in_swaps = [asked.ms for asked, near in zip(answered, near_swap, strict=True) if near]
    latencies = [asked.ms for asked in answered]
    return {
        "broker": broker,
        "seconds": _number(story.seconds),
        "rounds": [_round(one) for one in story.rounds],
        "requests": {
            "sent": len(story.asked),
            "answered": len(answered),
            "failed": len(story.errors),
            "p50_ms": _number(percentile(latencies, 0.50)),
            "p99_ms": _number(percentile(latencies, 0.99)),
            "p99_in_swap_windows_ms": _number(percentile(in_swaps, 0.99)),
        },
        "versions_served": sorted({asked.version for asked in answered if asked.version is not None}),
        "examples": {
            "produced": found.written,
            "stored": found.stored,
            "dead_lettered": found.dead_lettered,
            "lost": found.lost,
            "twice": found.twice,
        },
    }


def broken_promises(story: Story, found: Ledger, missing: Sequence[str], *, exit_code: int) -> list[str]:
    """What should have happened and did not; empty when all is well. `missing`: the round that did not happen, and its causes."""
    broken = [f"a promised round did not happen: {'; '.join(missing)}"] if missing else []
    broken += _record_faults(found)
    if exit_code:
        broken.append(f"`relearnd run` was asked to stop and ended with exit code {exit_code}")
    if story.errors:
        broken.append(f"{len(story.errors)} of {len(story.asked)} requests failed; the first: {story.errors[0]}")
    return broken


def _record_faults(found: Ledger) -> list[str]:
    if found.stored is None:
        return [f"the learner could not be asked what became of {found.written} records"]
    faults = []
    if found.lost or found.twice:
        faults.append(f"of {found.written} records {found.lost} were lost and {found.twice} are there twice")
    if found.dead_lettered != found.malformed:
        faults.append(f"{found.malformed} malformed records were produced, {found.dead_lettered} became dead letters")
    return faults


def _round(one: Round) -> dict[str, Any]:
    judged = one.judged
    return {
        "source": one.source,
        "drift_at_example": one.drift_at_example,
        "drift": {
            name: {"score": _number(score.score), "threshold": _number(score.threshold), "drifted": score.drifted}
            for name, score in one.drift.items()
        },
        "accuracy_first_window": _number(one.accuracy_first_window),
        "accuracy_after": _number(one.accuracy_after),
        "champion": _contender(one.champion, judged.champion if judged else None),
        "challenger": _contender(one.challenger, judged.challenger if judged else None),
        "verdict": judged.outcome if judged else "inconclusive",
        "reasons": list(judged.reasons) if judged else [one.missing or "no verdict"],
        "seconds_drift_to_serving": _number(one.seconds_drift_to_serving),
    }


def _contender(version: int | None, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """A version and how its ONNX artefact did on the holdout, over all of it and over its newest and older part."""
    scores = evaluation or {}
    told: dict[str, Any] = {"version": version}
    for metric in ("accuracy", "macro_f1"):
        told[metric] = _number(scores.get(metric))
        for part in SLICES:
            told[f"{part}_{metric}"] = _number((scores.get("slices") or {}).get(part, {}).get(metric))
    return told


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), 4)
