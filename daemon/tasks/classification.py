"""Classification: a text has one label of a known set. What that means for batches, labels and scores; numpy only.

Token ids are lists of different lengths, label ids are positions in the label set, `ABSENT` for a label that is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.core.types import ClassScore, SliceScore

Ids = NDArray[np.int64]

ABSENT = -1
_BUCKET_BATCHES = 16  # batches that are sorted by length together: enough to pad little, few enough to stay random


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as a model reads them; both of the same length."""

    tokens: Sequence[Sequence[int]]
    labels: Ids

    def __len__(self) -> int:
        return len(self.tokens)


def merge_labels(parent: Sequence[str], expected: Sequence[str], seen: Sequence[str]) -> tuple[str, ...]:
    """The parent's labels in their places, then expected ones, then others that were seen, by name."""
    return tuple(dict.fromkeys([*parent, *expected, *sorted(set(seen))]))


def label_ids(names: Sequence[str], labels: Sequence[str]) -> Ids:
    """Where each name stands in `labels`; ABSENT for others."""
    places = {label: place for place, label in enumerate(labels)}
    return np.array([places.get(name, ABSENT) for name in names], dtype=np.int64)


def shuffled_batches(lengths: Sequence[int], batch_size: int, rng: "np.random.Generator") -> list[Ids]:
    """Every index once, in batches of similar length, in random order."""
    order = rng.permutation(len(lengths))
    bucket = batch_size * _BUCKET_BATCHES
    batches = [
        batch
        for start in range(0, len(order), bucket)
        for batch in _by_length(order[start : start + bucket], lengths, batch_size)
    ]
    return [batches[place] for place in rng.permutation(len(batches))]


def ordered_batches(lengths: Sequence[int], batch_size: int) -> list[Ids]:
    """Every index once, shortest first."""
    return _by_length(np.arange(len(lengths)), lengths, batch_size)


def _by_length(indices: Ids, lengths: Sequence[int], batch_size: int) -> list[Ids]:
    ordered = indices[np.argsort(np.asarray(lengths)[indices], kind="stable")]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """(input_ids, attention_mask), each (rows, longest row), zeros on the right of both: what is masked is not read."""
    width = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return tokens, mask


def class_scores(truth: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Mapping[str, ClassScore]:
    """One score for each of `labels` and for each label of `truth` that the model does not know.

    Precision is NaN for a label never answered, recall for one that never occurs, F1 where either could not be told.
    """
    return {label: _class_score(truth, answers, label) for label in merge_labels(labels, (), truth)}


def _class_score(truth: Sequence[str], answers: Sequence[str], label: str) -> ClassScore:
    pairs = list(zip(truth, answers, strict=True))
    hits = sum(true == answer == label for true, answer in pairs)
    support = sum(true == label for true, _ in pairs)
    answered = sum(answer == label for _, answer in pairs)
    return ClassScore(
        precision=_share(hits, answered),
        recall=_share(hits, support),
        f1=_share(2 * hits, support + answered),
        support=support,
    )


def slice_score(truth: Sequence[str], answers: Sequence[str]) -> SliceScore:
    """Macro F1 is the mean over the labels that occur in `truth`. Both metrics are NaN without examples."""
    hits = sum(true == answer for true, answer in zip(truth, answers, strict=True))
    present = [_class_score(truth, answers, label).f1 for label in sorted(set(truth))]
    return SliceScore(
        examples=len(truth),
        accuracy=_share(hits, len(truth)),
        macro_f1=_share(sum(present), len(present)),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
