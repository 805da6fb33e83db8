import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.serve.buckets import MOST_TOKENS, PART_COST, buckets


def cost(groups: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    return sum(PART_COST + len(group) * max(lengths[index] for index in group) for group in groups)


def partitions(indices: Sequence[int]) -> Iterator[list[list[int]]]:
    for cuts in itertools.product([False, True], repeat=len(indices) - 1):
        groups = [[indices[0]]]
        for index, cut in zip(indices[1:], cuts, strict=True):
            groups.append([index]) if cut else groups[-1].append(index)
        yield groups


@given(st.lists(st.integers(1, 700), min_size=1, max_size=8), st.integers(1, 8))
def test_every_text_is_in_one_group_within_the_limits_at_the_least_cost(lengths: list[int], most: int) -> None:
    groups = buckets(lengths, most=most)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))

    def allowed(groups: Sequence[Sequence[int]]) -> bool:
        return all(
            len(group) <= most and (len(group) == 1 or len(group) * max(lengths[i] for i in group) <= MOST_TOKENS)
            for group in groups
        )

    assert allowed(groups)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    assert cost(groups, lengths) == min(cost(each, lengths) for each in partitions(by_length) if allowed(each))


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([5], [[0]]),
        ([20, 18, 21], [[1, 0, 2]]),  # alike: together
        ([60, 8, 9], [[1, 2], [0]]),  # padding two to 60 would cost more than one more inference
        ([300, 300], [[0], [1]]),  # too large together
    ],
)
def test_splitting_is_worth_it_only_when_it_saves_more_padding_than_it_costs(
    lengths: list[int], groups: list[list[int]]
) -> None:
    assert buckets(lengths, most=32) == groups
