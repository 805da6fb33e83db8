"""Large dead letters, of which the store keeps the beginning: it would not hold many of them whole, nor read them back."""

import re
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from daemon.core.stream import DeadLetter, Record

KEPT = 64 << 10  # bytes of a key and of a value
_SAID = re.compile(rf"the first {KEPT} of its value's (?P<size>[0-9]+) bytes are kept")


def cut(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """The same; what lets one find a record again is in the detail of those that lost bytes. The last thing done to a letter."""
    return [letter if _fits(letter.key) and _fits(letter.value) else _cut(letter) for letter in letters]


def is_cut(letter: DeadLetter) -> bool:
    """Whether its value may lack bytes: such a letter is not decoded as it is."""
    return letter.value is not None and len(letter.value) == KEPT


def whole_size(letter: DeadLetter) -> int:
    """Of a letter that is cut: how many bytes its value had. 0 where it does not say so."""
    said = _SAID.search(letter.detail)
    return int(said["size"]) if said else 0


def mended(letter: DeadLetter, record: Record) -> DeadLetter | None:
    """With all its bytes again; None where this is not the record it was."""
    if record.value is None or sha256(record.value).hexdigest() not in letter.detail:
        return None
    return replace(letter, key=record.key, value=record.value)


def _fits(content: bytes | None) -> bool:
    return content is None or len(content) < KEPT


def _cut(letter: DeadLetter) -> DeadLetter:
    said = [letter.detail]
    for name, content in (("value", letter.value), ("key", letter.key)):
        if content is not None and not _fits(content):
            said.append(
                f"the first {KEPT} of its {name}'s {len(content)} bytes are kept, sha256 {sha256(content).hexdigest()}"
            )
    key, value = (content if content is None else content[:KEPT] for content in (letter.key, letter.value))
    return replace(letter, key=key, value=value, detail="; ".join(said))
