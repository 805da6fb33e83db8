"""What two texts share that differ only in what does not matter."""

import re

_NOISE = re.compile(r"(?:https?://\S+|www\.\S+|@\w+|[\W_])+")
_DIGITS = re.compile(r"\d+")


def plain(text: str) -> str:
    """Without case, white space, punctuation, URLs and mentions, and each number a 0.

    A text that is nothing but those stays as it is.
    """
    return _DIGITS.sub("0", _NOISE.sub(" ", text).strip()).casefold() or text
