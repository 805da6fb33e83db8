"""What classification means for batches, labels and scores."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from daemon.tasks.classification import (
    ABSENT,
    class_scores,
    label_ids,
    merge_labels,
    ordered_batches,
    pad,
    shuffled_batches,
    slice_score,
)


def test_a_grown_label_set_keeps_the_parents_places() -> None:
    assert merge_labels(["b", "a"], ["a", "d"], ["z", "c", "b"]) == ("b", "a", "d", "c", "z")


def test_labels_outside_the_set_are_absent_and_not_a_class() -> None:
    assert label_ids(["a", "x", "b"], ["a", "b"]).tolist() == [0, ABSENT, 1]


@given(st.lists(st.integers(1, 60), max_size=200), st.integers(1, 9), st.integers(0, 9))
def test_every_example_is_in_exactly_one_batch(lengths: list[int], size: int, seed: int) -> None:
    for batches in (shuffled_batches(lengths, size, np.random.default_rng(seed)), ordered_batches(lengths, size)):
        assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)


def test_batches_hold_texts_of_similar_length_in_an_order_that_the_seed_decides() -> None:
    lengths = [1 + i % 50 for i in range(400)]
    batches = shuffled_batches(lengths, 8, np.random.default_rng(1))
    widths = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert np.mean(widths) < 5
    assert [b.tolist() for b in shuffled_batches(lengths, 8, np.random.default_rng(1))] == [b.tolist() for b in batches]
    assert [b.tolist() for b in shuffled_batches(lengths, 8, np.random.default_rng(2))] != [b.tolist() for b in batches]


def test_padding_is_masked() -> None:
    tokens, mask = pad([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_scores_of_a_worked_example() -> None:
    truth = ["a", "a", "a", "b", "c"]
    answers = ["a", "a", "b", "b", "a"]
    scores = class_scores(truth, answers, ["a", "b"])
    assert (scores["a"].precision, scores["a"].recall, scores["a"].support) == (2 / 3, 2 / 3, 3)
    assert (scores["b"].precision, scores["b"].recall, scores["b"].f1) == (1 / 2, 1, 2 / 3)
    assert math.isnan(scores["c"].precision)
    assert (scores["c"].recall, scores["c"].f1) == (0, 0)
    whole = slice_score(truth, answers)
    assert (whole.examples, whole.accuracy) == (5, 3 / 5)
    assert math.isclose(whole.macro_f1, (2 / 3 + 2 / 3 + 0) / 3)


def test_nothing_to_score_is_nan_and_never_a_number() -> None:
    empty = slice_score([], [])
    assert empty.examples == 0
    assert math.isnan(empty.accuracy) and math.isnan(empty.macro_f1)
    score = class_scores([], [], ["a"])["a"]
    assert score.support == 0
    assert all(math.isnan(value) for value in (score.precision, score.recall, score.f1))
