"""What a report says of a version's answers on the holdout."""

import itertools
import math
from collections.abc import Sequence

from daemon.core.types import EvalReport, Prediction
from daemon.train.dataset import FrozenExample
from daemon.train.evaluate import eval_set, evaluate

HOLDOUT = [
    FrozenExample("1", "good", "up", "air", recent=False),
    FrozenExample("2", "bad", "down", "air", recent=False),
    FrozenExample("3", "good fun", "up", "music", recent=True),
    FrozenExample("4", "good grief", "down", "music", recent=True),
    FrozenExample("5", "bad bad", "down", "music", recent=True),
]


def says_up_to_what_is_good(texts: Sequence[str]) -> list[Prediction]:
    return [Prediction("up" if "good" in text else "down", 0.9, [0.9, 0.1]) for text in texts]


def report(holdout: Sequence[FrozenExample]) -> EvalReport:
    ticks = itertools.count()
    return evaluate(says_up_to_what_is_good, ["up", "down"], holdout, monotonic=lambda: next(ticks) * 0.002)


def test_the_whole_and_its_slices_are_scored() -> None:
    scored = report(HOLDOUT)
    assert (scored.examples, scored.accuracy) == (5, 4 / 5)
    assert {name: (score.examples, round(score.accuracy, 3)) for name, score in scored.slices.items()} == {
        "recent": (3, 0.667),
        "past": (2, 1.0),
        "source:air": (2, 1.0),
        "source:music": (3, 0.667),
    }
    assert scored.per_class["down"].recall == 2 / 3


def test_latency_is_that_of_single_texts_in_milliseconds() -> None:
    scored = report(HOLDOUT)
    assert math.isclose(scored.latency_ms_p50, 2.0)
    assert math.isclose(scored.latency_ms_p99, 2.0)


def test_without_a_holdout_nothing_is_claimed() -> None:
    scored = report([])
    numbers = [scored.accuracy, scored.macro_f1, scored.latency_ms_p50, scored.latency_ms_p99]
    assert scored.examples == 0
    assert all(math.isnan(number) for number in numbers)
    assert math.isnan(scored.slices["recent"].accuracy)


def test_the_eval_set_changes_with_ids_labels_and_order_only() -> None:
    relabelled = [*HOLDOUT[:-1], FrozenExample("5", "bad bad", "up", "music", recent=True)]
    reworded = [*HOLDOUT[:-1], FrozenExample("5", "worse", "down", "film", recent=False)]
    assert eval_set(reworded) == eval_set(HOLDOUT)
    assert len({eval_set(HOLDOUT), eval_set(relabelled), eval_set(HOLDOUT[::-1]), eval_set(HOLDOUT[1:])}) == 4
