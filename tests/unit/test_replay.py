"""Which past examples are trained on again."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from daemon.train.replay import choose_replay, replay_count


def test_the_share_is_of_all_that_is_trained_on() -> None:
    assert replay_count(300, 0.5) == 300
    assert replay_count(300, 0.25) == 100
    assert replay_count(300, 0.0) == 0


def test_labels_are_drawn_evenly_and_a_rare_one_gives_all_it_has() -> None:
    labels = ["a"] * 90 + ["b"] * 40 + ["c"] * 4
    chosen = choose_replay(labels, 44, seed=1)
    assert Counter(labels[i] for i in chosen) == {"a": 20, "b": 20, "c": 4}


@given(st.lists(st.sampled_from("abc"), max_size=80), st.integers(0, 100), st.integers(0, 5))
def test_never_twice_never_too_many_and_all_when_there_are_too_few(labels: list[str], count: int, seed: int) -> None:
    chosen = choose_replay(labels, count, seed=seed)
    assert len(chosen) == min(count, len(labels))
    assert chosen == sorted(set(chosen))
    assert chosen == choose_replay(labels, count, seed=seed)


def test_another_seed_draws_others() -> None:
    labels = ["a", "b"] * 100
    assert choose_replay(labels, 20, seed=1) != choose_replay(labels, 20, seed=2)
