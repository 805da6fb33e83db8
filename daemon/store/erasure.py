"""Forgetting a person: their records out, their offsets covered, nothing of them taken again, the runs that saw them named."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from types import MappingProxyType

import msgspec

from daemon.core.states import SkipReason
from daemon.core.stream import Batch, DeadLetter, Position, Skip
from daemon.core.upkeep import Erasure
from daemon.runtime.records import decode, encode
from daemon.store.database_file import ROW_GROUP
from daemon.store.duckdb_database import SQL, Cursor
from daemon.store.letters import all_letters
from daemon.store.skips import TABLES, cover_gone
from daemon.store.stream_rows import aware, naive

MOST_TOUCHED = 256  # row groups from which one transaction takes rows; see `DuckdbStore.deletion`


class _Body(msgspec.Struct):
    """Counts and runs: nothing of the person."""

    counts: dict[str, int]
    runs: list[str]


def is_everywhere(cursor: Cursor, subject: str) -> bool:
    """Whether their rows lie in so many row groups that they must go a part at a time."""
    return _find(cursor, subject) > MOST_TOUCHED


def erase_some(cursor: Cursor, subject: str) -> Counter[str]:
    """A part of somebody's rows, counted by table, in the caller's transaction. Nothing says of whom they were: `erase` does."""
    _find(cursor, subject)
    cursor.execute(SQL["gone_of_found"], {"row_groups": MOST_TOUCHED})
    return _take_out(cursor)


def erase(
    cursor: Cursor,
    subject: str,
    holds: Callable[[DeadLetter], bool],
    at: datetime,
    *,
    before: Mapping[str, int] = MappingProxyType({}),
) -> Erasure:
    """The rows that are left of a person, in the caller's transaction. `before`: what `erase_some` took out."""
    (number,) = cursor.execute(SQL["next_erasure"]).fetchone()
    runs = [run_id for (run_id,) in cursor.execute(SQL["runs_of_subject"], {"subject": subject}).fetchall()]
    letters = _letters_that_hold(cursor, holds)
    cursor.execute(SQL["gone_of_found"], {"row_groups": _find(cursor, subject)})
    cursor.execute(
        SQL["add_gone"],
        {
            "topics": [letter.topic for letter in letters],
            "parts": [letter.partition for letter in letters],
            "offsets": [letter.offset for letter in letters],
        },
    )
    counts = _take_out(cursor) + Counter(before)
    cursor.execute(SQL["mark_erased"], {"run_ids": runs, "at": naive(at)})
    body = _Body({table: counts[table] for table in TABLES}, runs)
    values = {
        "number": number,
        "subject": subject,
        "asked_at": naive(at),
        "finished_at": None,
        "body": encode(body).decode(),
    }
    cursor.execute(SQL["insert_erasure"], values)
    return _erasure(number, naive(at), None, body)


def read_erasures(cursor: Cursor) -> list[Erasure]:
    """All, the oldest first."""
    return [
        _erasure(number, asked_at, finished_at, decode(body.encode(), _Body))
        for number, _, asked_at, finished_at, body in cursor.execute(SQL["erasures"]).fetchall()
    ]


def without_erased(batch: Batch, erased: Collection[str]) -> Batch:
    """The batch with skips in the place of records about somebody who was forgotten: a replay brings nobody back."""
    if not erased:
        return batch
    people = [
        *((example.position, example.subject) for example in batch.examples),
        *((one.example.position, one.example.subject) for one in batch.quarantined),
        *((half.position, half.subject) for half in batch.halves),
    ]
    gone = {position for position, subject in people if subject in erased}
    if not gone:
        return batch
    return Batch(
        examples=[example for example in batch.examples if example.position not in gone],
        dead_letters=batch.dead_letters,
        gaps=batch.gaps,
        advances=batch.advances,
        quarantined=[one for one in batch.quarantined if one.example.position not in gone],
        skips=[*batch.skips, *map(_skip, sorted(gone, key=lambda position: position.offset))],
        halves=[half for half in batch.halves if half.position not in gone],
    )


def _skip(position: Position) -> Skip:
    return Skip(position.topic, position.partition, position.offset, position.offset + 1, SkipReason.ERASED)


def _find(cursor: Cursor, subject: str) -> int:
    """Into the temporary table `found`; in how many row groups they lie."""
    cursor.execute(SQL["found_of_subject"], {"subject": subject, "row_group": ROW_GROUP})
    (row_groups,) = cursor.execute(SQL["row_groups_found"]).fetchone()
    return int(row_groups)


def _take_out(cursor: Cursor) -> Counter[str]:
    """What the temporary table `gone` names; the offsets stay covered."""
    counts = {table: int(cursor.execute(SQL[f"delete_gone_{table}"]).fetchone()[0]) for table in TABLES}
    cover_gone(cursor, SkipReason.ERASED)
    return Counter(counts)


def _letters_that_hold(cursor: Cursor, holds: Callable[[DeadLetter], bool]) -> list[Position]:
    return [letter.position for letter in all_letters(cursor) if holds(letter)]


def _erasure(number: int, asked_at: datetime, finished_at: datetime | None, body: _Body) -> Erasure:
    return Erasure(
        number=number,
        asked_at=aware(asked_at),
        finished_at=finished_at and aware(finished_at),
        examples=body.counts["examples"],
        dead_letters=body.counts["dead_letters"],
        quarantined=body.counts["quarantine"],
        halves=body.counts["halves"],
        runs=body.runs,
    )
