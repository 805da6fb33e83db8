"""Dead letters read back, never more of their bytes than are looked at.

DuckDB reads a column 2,048 rows at a time, which of values may be more than its memory; asked by row ids it reads just those rows.
So a query names the letters by row id and number, without their bytes, and these are read some rows at a time.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from daemon.core.stream import DeadLetter
from daemon.store.duckdb_database import SQL, Cursor
from daemon.store.stream_rows import dead_letter

PAGE_BYTES = 16 << 20
_TOGETHER = 32  # rows read in one query
_NAMED = 10_000  # of all letters so many are named in one query

Numbered = tuple[int, DeadLetter]


def read_letters(cursor: Cursor, query: str, **values: Any) -> Iterator[Numbered]:
    """Those that a query names by rowid and seq, in the order of their rows. The cursor must be in a transaction."""
    named = deque(cursor.execute(SQL[query], values).fetchall())
    while named:
        first = named[0][0]
        last = first + _TOGETHER - 1
        wanted = set()
        while named and named[0][0] <= last:
            wanted.add(named.popleft()[1])
        rows = cursor.execute(SQL["letters_in_rows"], {"first": first, "last": last}).fetchall()
        yield from ((seq, dead_letter(tuple(row))) for seq, *row in rows if seq in wanted)


def all_letters(cursor: Cursor) -> Iterator[DeadLetter]:
    """The oldest first, in a transaction; neither them nor their numbers are ever held all at once."""
    after, more = 0, True
    while more:
        more = False
        for number, letter in read_letters(cursor, "letters_after", seq=after, limit=_NAMED):
            after, more = number, True
            yield letter


def read_page(cursor: Cursor, query: str, *, most: int = PAGE_BYTES, **values: Any) -> Sequence[Numbered]:
    """The first of those that a query names, until they have so many bytes; at least one where there is one."""
    cursor.begin()
    try:
        return list(_up_to(most, read_letters(cursor, query, **values)))
    finally:
        cursor.rollback()


def _up_to(most: int, letters: Iterable[Numbered]) -> Iterator[Numbered]:
    size = 0
    for number, letter in letters:
        yield number, letter
        size += len(letter.value or b"") + len(letter.key or b"")
        if size >= most:
            return
