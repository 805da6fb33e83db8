"""Which past examples go with the new ones, so that what was known is not forgotten. Pure; moving data is not done here."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def replay_count(new: int, share: float) -> int:
    """How many replayed examples make up `share` (below 1) of all that is trained on, given `new` new ones."""
    return round(new * share / (1 - share))


def choose_replay(labels: Sequence[str], count: int, *, seed: int) -> list[int]:
    """Places of at most `count` past examples in `labels`, as evenly over the labels as their numbers allow; sorted.

    Each label gives its share or all it has; what a rare label cannot give, the others do.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place in np.random.default_rng(seed).permutation(len(labels)):
        places[labels[place]].append(int(place))
    chosen: list[int] = []
    rarest_first = sorted(places.values(), key=len)
    for done, of_label in enumerate(rarest_first):
        fair = -(-(count - len(chosen)) // (len(rarest_first) - done))
        chosen += of_label[:fair]
    return sorted(chosen[:count])
