"""Delayed labels: a prediction and its label, which come by two topics in either order, become one example.

The record that completes an id becomes the example, at its own position, and so stands in the order of ingest where its label was
known: nothing is trained on or judged by before that. The record that came first stays a half.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.core.states import HalfKind, QuarantineReason, Split
from daemon.core.stream import Example, Half, Quarantined


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of a batch's halves; each is in one of the first three. `delays` in seconds of event time, one an example."""

    completed: Sequence[Example]
    ambiguous: Sequence[Quarantined]
    waiting: Sequence[Half]
    delays: Sequence[float]


def join(
    arrived: Sequence[Half], stored: Sequence[Half], split_for: Callable[[str, str], Split], *, ambiguity: bool
) -> Joined:
    """`arrived` in the order of arrival; `stored` are the store's halves with the same ids, oldest first.

    Of several that wait for the same id the newest counts. Labels that differ are a conflict where `ambiguity` says so. A half that
    completes an id again gives the same example again, which is found to be a duplicate, or the same id with another
    label, which is a conflict.
    """
    waiting: defaultdict[tuple[HalfKind, str], list[Half]] = defaultdict(list)
    for half in stored:
        waiting[half.kind, half.id].append(half)
    completed, ambiguous, left, delays = [], [], [], []
    for half in arrived:
        others = waiting[_OTHER[half.kind], half.id]
        if not others:
            waiting[half.kind, half.id].append(half)
            left.append(half)
            continue
        example, delay = _completed(half, others[-1], split_for)
        labels = {other.label for other in others if other.kind == HalfKind.LABEL}
        if ambiguity and len(labels) > 1:
            detail = f"the id has {len(labels)} labels: {', '.join(sorted(map(repr, labels)))}"
            ambiguous.append(Quarantined(example, QuarantineReason.LABEL_CONFLICT, detail))
        else:
            completed.append(example)
            delays.append(delay)
    return Joined(completed, ambiguous, left, delays)


_OTHER = {HalfKind.LABEL: HalfKind.PREDICTION, HalfKind.PREDICTION: HalfKind.LABEL}


def _completed(last: Half, first: Half, split_for: Callable[[str, str], Split]) -> tuple[Example, float]:
    """It happened when the text was asked about, and comes from whoever said the label: that is who has to be trusted."""
    prediction, label = (first, last) if last.kind == HalfKind.LABEL else (last, first)
    assert prediction.text is not None
    assert label.label is not None
    example = Example(
        position=last.position,
        id=last.id,
        text=prediction.text,
        label=label.label,
        occurred_at=prediction.occurred_at,
        ingested_at=last.ingested_at,
        source=label.source,
        split=split_for(prediction.id, prediction.text),
        subject=prediction.subject or label.subject,
    )
    return example, max(0.0, (label.occurred_at - prediction.occurred_at).total_seconds())
