"""How a version does on the holdout. What is scored is what would be served: answers of the exported artefact."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from daemon.core.types import EvalReport, Prediction, SliceScore
from daemon.tasks.classification import class_scores, slice_score
from daemon.train.dataset import FrozenExample

Predict = Callable[[Sequence[str]], Sequence[Prediction]]

_TIMED_TEXTS = 50
_UNTIMED_TEXTS = 5  # first calls allocate


def evaluate(
    predict: Predict,
    labels: Sequence[str],
    holdout: Sequence[FrozenExample],
    *,
    anchor: Sequence[FrozenExample] = (),
    monotonic: Callable[[], float],
) -> EvalReport:
    """Score `predict`, whose answers are among `labels`. With an empty holdout every metric is NaN. `monotonic` in seconds.

    `anchor` is a slice of its own and no part of the whole.
    """
    answers = [prediction.label for prediction in predict([example.text for example in holdout])] if holdout else []
    truth = [example.label for example in holdout]
    whole = slice_score(truth, answers)
    p50, p99 = _latency_ms(predict, [example.text for example in holdout], monotonic)
    return EvalReport(
        eval_set=eval_set(holdout),
        examples=len(holdout),
        accuracy=whole.accuracy,
        macro_f1=whole.macro_f1,
        per_class=class_scores(truth, answers, labels),
        slices={**_slices(holdout, answers), **_anchor_slice(predict, anchor)},
        latency_ms_p50=p50,
        latency_ms_p99=p99,
    )


def eval_set(holdout: Sequence[FrozenExample]) -> str:
    """sha256 over ids and labels, in order: reports with the same one answered the same questions."""
    digest = hashlib.sha256()
    for example in holdout:
        digest.update(json.dumps([example.id, example.label]).encode() + b"\n")
    return digest.hexdigest()


def _slices(holdout: Sequence[FrozenExample], answers: Sequence[str]) -> Mapping[str, SliceScore]:
    members = {
        "recent": [example.recent for example in holdout],
        "past": [not example.recent for example in holdout],
    }
    for source in sorted({example.source for example in holdout}):
        members[f"source:{source}"] = [example.source == source for example in holdout]
    truth = [example.label for example in holdout]
    return {name: slice_score(_only(truth, inside), _only(answers, inside)) for name, inside in members.items()}


def _anchor_slice(predict: Predict, anchor: Sequence[FrozenExample]) -> Mapping[str, SliceScore]:
    if not anchor:
        return {}
    answers = [prediction.label for prediction in predict([example.text for example in anchor])]
    return {"anchor": slice_score([example.label for example in anchor], answers)}


def _only(values: Sequence[str], inside: Sequence[bool]) -> list[str]:
    return [value for value, is_inside in zip(values, inside, strict=True) if is_inside]


def _latency_ms(predict: Predict, texts: Sequence[str], monotonic: Callable[[], float]) -> tuple[float, float]:
    """Median and 99th percentile over single texts, spread evenly over all."""
    if not texts:
        return float("nan"), float("nan")
    chosen = [texts[i * len(texts) // _TIMED_TEXTS] for i in range(_TIMED_TEXTS)]
    for text in chosen[:_UNTIMED_TEXTS]:
        predict([text])
    times = [_seconds(predict, text, monotonic) * 1000 for text in chosen]
    p50, p99 = np.percentile(times, [50, 99])
    return float(p50), float(p99)


def _seconds(predict: Predict, text: str, monotonic: Callable[[], float]) -> float:
    started = monotonic()
    predict([text])
    return monotonic() - started
