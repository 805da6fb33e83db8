from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from daemon.store.sampling import BLOCK, SPARE, drawn_ranges, newest_ranges


def seqs(ranges: list[tuple[int, int]]) -> list[int]:
    return [seq for after, up_to in ranges for seq in range(after + 1, up_to + 1)]


def test_a_small_past_is_looked_at_whole() -> None:
    assert drawn_ranges(5000, 2000, 0.8, seed=1) == [(0, 5000)]
    assert drawn_ranges(0, 2000, 0.8, seed=1) == []


def test_of_a_large_past_as_many_blocks_are_drawn_as_the_sample_needs() -> None:
    few, many = (drawn_ranges(size, 2000, 0.5, seed=1) for size in (1_000_000, 10_000_000))
    needed = SPARE * 2000 / 0.5
    assert needed <= len(seqs(few)) <= needed + 2 * BLOCK
    assert len(seqs(many)) == len(seqs(few))
    assert max(seqs(many)) > 5_000_000


def test_the_blocks_are_spread_over_the_whole_past() -> None:
    drawn = drawn_ranges(10_000_000, 2000, 0.5, seed=1)
    stretch = 10_000_000 / (SPARE * 2000 / 0.5 / BLOCK)
    starts = [0, *(after for after, _ in drawn), 10_000_000]
    assert max(late - early for early, late in pairwise(starts)) < 2.5 * stretch


def test_each_block_of_a_stretch_is_drawn_about_as_often() -> None:
    drawn = Counter(after // BLOCK for seed in range(2000) for after, _ in drawn_ranges(40 * BLOCK, 500, 1.0, seed))
    assert len(drawn) == 40
    assert min(drawn.values()) > 60


def test_the_seed_decides_which_blocks() -> None:
    assert drawn_ranges(1_000_000, 2000, 0.5, seed=1) == drawn_ranges(1_000_000, 2000, 0.5, seed=1)
    assert drawn_ranges(1_000_000, 2000, 0.5, seed=1) != drawn_ranges(1_000_000, 2000, 0.5, seed=2)


@given(st.integers(0, 200_000), st.integers(1, 500), st.floats(0, 1), st.integers())
def test_drawn_ranges_are_in_order_and_apart_and_inside(up_to: int, limit: int, share: float, seed: int) -> None:
    ranges = drawn_ranges(up_to, limit, share, seed)
    bounds = [bound for one in ranges for bound in one]
    assert bounds == sorted(set(bounds))
    assert not bounds or (bounds[0] >= 0 and bounds[-1] <= up_to)
    assert len(seqs(ranges)) >= min(up_to, limit)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 10**5), st.floats(0, 1))
def test_the_search_for_the_newest_ends_with_everything(after: int, size: int, limit: int, share: float) -> None:
    ranges = list(newest_ranges(after, after + size, limit, share))
    assert ranges[-1] == (after, after + size)
    assert all(up_to == after + size for _, up_to in ranges)
    assert [first for first, _ in ranges] == sorted({first for first, _ in ranges}, reverse=True)
