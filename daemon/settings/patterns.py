"""Whether a regular expression of an operator's can stall ingest: one that tries every way to match may take hours for a text."""

import re
import time
from collections.abc import Iterator
from functools import cache

MOST_SECONDS = 0.1  # of this thread's processor time, for one text
LONGEST = 1000  # characters; quadratic time is far below the limit then, cubic time far above
_STEPS_OF_ONE = 50  # characters up to which each length is tried, so that what doubles is stopped soon after the limit
_GROWTH = 1.5
_KINDS = "aA0 -._é,"
_LITERAL = re.compile(r"[^\\.^$*+?{}\[\]|()]+")
_ENDS = "\n\x00"  # what ends a run of anything, so that the engine tries every other way to match


@cache
def stalls_on(pattern: str) -> str | None:
    """A short text on which the pattern takes too long, described; None when none was found, which proves nothing."""
    search = re.compile(pattern).search
    for start in {"", _literal_start(pattern)}:
        for unit in _units(pattern):
            for count in _counts():
                before = time.thread_time()
                search(start + unit * count + _ENDS)
                if time.thread_time() - before > MOST_SECONDS:
                    return f"{count} times {unit!r}"
    return None


def _units(pattern: str) -> list[str]:
    """What may be matched again and again: a sign of each kind, and each sign and word of the pattern itself."""
    words = _LITERAL.findall(pattern) + _LITERAL.findall(re.sub(r"\(\?:|[*+?]", "", pattern))
    return sorted({*_KINDS, *pattern, *words})


def _literal_start(pattern: str) -> str:
    found = _LITERAL.match(pattern)
    return found[0] if found else ""


def _counts() -> Iterator[int]:
    count = 1
    while count <= LONGEST:
        yield count
        count = count + 1 if count < _STEPS_OF_ONE else int(count * _GROWTH)
