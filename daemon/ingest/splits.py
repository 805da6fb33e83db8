"""Which split an example belongs to, from its key alone: the same key lands in the same split in every store, for ever.

The key is the id, so that a corrected example stays where it was: what was held out is never trained on. With many near
duplicates under ids of their own the text is the better key: what was trained on does not come back as an examination.
"""

from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from daemon.config import Splits
from daemon.core.states import Split
from daemon.ingest.plain import plain

_UNIT = 1 << 64


def splitter(splits: Splits) -> Callable[[str, str], Split]:
    """What says an example's split from its id and text, by the key that the config names.

    Holdout takes the lowest hashes, validation the next, train the rest: a larger share only ever adds to a split's front.
    """
    by_text = splits.key == "text"
    holdout, watched = _first_digest(splits.holdout), _first_digest(splits.holdout + splits.validation)
    train, validation, held_out = Split.TRAIN, Split.VALIDATION, Split.HOLDOUT

    def split_of(example_id: str, text: str) -> Split:
        key = plain(text) if by_text else example_id
        place = blake2b(key.encode(), digest_size=8).digest()
        return train if place >= watched else validation if place >= holdout else held_out

    return split_of


def split_numbers(splits: Splits, keys: Iterable[str]) -> npt.NDArray[np.int8]:
    """`splitter`'s answers, each as its place in `Split`. The keys are ids or texts, as `splits.key` says."""
    hashed = b"".join([blake2b(key.encode(), digest_size=8).digest() for key in _keys(splits, keys)])
    places = np.frombuffer(hashed, ">u8")
    holdout, watched = _first_digest(splits.holdout), _first_digest(splits.holdout + splits.validation)
    lower = [(places < int.from_bytes(first, "big")).view(np.int8) for first in (watched, holdout)]
    return lower[0] + lower[1]


def _keys(splits: Splits, keys: Iterable[str]) -> Iterable[str]:
    return map(plain, keys) if splits.key == "text" else keys


@cache
def _first_digest(share: float) -> bytes:
    """The lowest 8-byte hash that, as a fraction of all, is not below a share; one above all hashes where there is none."""
    low, high = 0, _UNIT
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle / _UNIT < share else (low, middle)
    return low.to_bytes(9, "big")[1:] if low < _UNIT else b"\xff" * 9


def split_for(example_id: str, text: str, splits: Splits) -> Split:
    return splitter(splits)(example_id, text)
