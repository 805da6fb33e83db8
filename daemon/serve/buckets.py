"""Which texts share an inference: those of like length, so that little is padded. Pure."""

from collections.abc import Sequence

MOST_TOKENS = 192
"""In one inference, padding counted. More is not faster on a CPU, and memory grows with it."""

PART_COST = 10.0
"""What one more inference costs beside its tokens, in tokens. Measured with MiniLM on CPUs: 6 in the graph, fp32 and int8, and what
Python does around it; more makes fewer and larger ones."""


def buckets(lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """Every index once, in groups of at most `most` that are cheapest in all, shortest texts first. A group costs its padded tokens
    and PART_COST; it holds at most MOST_TOKENS, or one text."""
    if len(lengths) == 1:
        return [[0]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0.0], [0]
    for stop in range(1, len(order) + 1):
        width = lengths[order[stop - 1]]
        widest = max(1, min(most, MOST_TOKENS // width))
        cost, start = min(
            (costs[start] + width * (stop - start), start) for start in range(max(0, stop - widest), stop)
        )
        costs.append(cost + PART_COST)
        starts.append(start)
    groups = []
    stop = len(order)
    while stop:
        groups.append(order[starts[stop] : stop])
        stop = starts[stop]
    return groups[::-1]
