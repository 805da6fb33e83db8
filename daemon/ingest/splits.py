"""Which split an example belongs to, from its id alone: the same id lands in the same split in every store, for ever."""

from hashlib import blake2b

from daemon.config import Splits
from daemon.core.states import Split

_UNIT = float(1 << 64)


def split_of(example_id: str, shares: Splits) -> Split:
    """Holdout takes the lowest hashes, validation the next, train the rest: a larger share only ever adds to a split's front."""
    place = int.from_bytes(blake2b(example_id.encode(), digest_size=8).digest(), "big") / _UNIT
    if place < shares.holdout:
        return Split.HOLDOUT
    if place < shares.holdout + shares.validation:
        return Split.VALIDATION
    return Split.TRAIN
