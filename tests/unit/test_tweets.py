"""How the borders between the sources of the tweets are found."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from daemon.demo.tweets import best_segments


def test_borders_lie_where_most_rows_are_beside_their_own_keyword() -> None:
    first, second, third, none = [True, False, False], [False, True, False], [False, False, True], [False] * 3
    assert best_segments([first, none, second, first, first, third, third]) == [0, 0, 0, 0, 0, 2, 2]
    assert best_segments([second, third]) == [1, 2]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_no_other_borders_are_better(hits: list[list[bool]]) -> None:
    def count(segments: tuple[int, ...]) -> int:
        return sum(row[segment] for row, segment in zip(hits, segments, strict=True))

    found = best_segments(hits)
    assert found == sorted(found)
    assert count(tuple(found)) == max(map(count, itertools.combinations_with_replacement(range(3), len(hits))))
