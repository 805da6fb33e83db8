"""Which examples are looked at to draw a sample: a few ranges of seq, so that a store ten times as large answers as fast.

The newest of a kind are looked for in a range that grows until it holds enough. Past examples are drawn from blocks of the stream:
the past is divided into stretches of equal length, and a hash with the seed decides which block of each is looked at. In a store
that is not much larger than the sample these are all blocks.
"""

from collections.abc import Iterator
from hashlib import md5

BLOCK = 2048  # examples; DuckDB reads so many at once
SPARE = 3  # times as many examples are looked at as are drawn, so that labels can be drawn evenly
GROWTH = 8

Range = tuple[int, int]  # after < seq <= up to


def newest_ranges(after: int, up_to: int, limit: int, share: float) -> Iterator[Range]:
    """Ranges that end at `up_to`, each larger than the one before, the last one all of it. `share` of the rows count."""
    span = max(BLOCK, int(2 * limit / max(share, 0.001)))
    while span < up_to - after:
        yield up_to - span, up_to
        span *= GROWTH
    yield after, up_to


def drawn_ranges(up_to: int, limit: int, share: float, seed: int, *, first: int = 1) -> list[Range]:
    """Blocks of the examples up to `up_to`, enough for `limit` of which `share` of the rows count; neighbours as one range.

    `first`: the oldest that retention has left.
    """
    blocks = range((first - 1) // BLOCK, -(-up_to // BLOCK))
    wanted = -(-int(SPARE * limit / max(share, 0.001)) // BLOCK) + 1  # one more: the newest may be short
    ranges: list[Range] = []
    for number in _one_of_each_stretch(blocks, wanted, seed) if len(blocks) > wanted else blocks:
        after, end = number * BLOCK, min(up_to, (number + 1) * BLOCK)
        if ranges and ranges[-1][1] == after:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((after, end))
    return ranges


def _one_of_each_stretch(blocks: range, stretches: int, seed: int) -> Iterator[int]:
    for number in range(stretches):
        start, end = (edge * len(blocks) // stretches for edge in (number, number + 1))
        chance = int.from_bytes(md5(f"{number}:{seed}".encode()).digest())
        yield blocks[start + chance % (end - start)]
