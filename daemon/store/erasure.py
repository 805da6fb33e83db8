"""Forgetting a person: their records out, their offsets covered, nothing of them taken again, the runs that saw them named."""

from collections.abc import Callable, Collection
from datetime import datetime

import msgspec

from daemon.core.states import SkipReason
from daemon.core.stream import Batch, DeadLetter, Position, Skip
from daemon.core.upkeep import Erasure
from daemon.runtime.records import decode, encode
from daemon.store.duckdb_database import SQL, Cursor
from daemon.store.letters import all_letters
from daemon.store.skips import TABLES, cover_gone
from daemon.store.stream_rows import aware, naive


class _Body(msgspec.Struct):
    """Counts and runs: nothing of the person."""

    counts: dict[str, int]
    runs: list[str]


def erase(cursor: Cursor, subject: str, holds: Callable[[DeadLetter], bool], at: datetime) -> Erasure:
    """All rows of a person, in the caller's transaction."""
    (number,) = cursor.execute(SQL["next_erasure"]).fetchone()
    runs = [run_id for (run_id,) in cursor.execute(SQL["runs_of_subject"], {"subject": subject}).fetchall()]
    letters = _letters_that_hold(cursor, holds)
    cursor.execute(SQL["gone_of_subject"], {"subject": subject})
    cursor.execute(
        SQL["add_gone"],
        {
            "topics": [letter.topic for letter in letters],
            "parts": [letter.partition for letter in letters],
            "offsets": [letter.offset for letter in letters],
        },
    )
    counts = {table: int(cursor.execute(SQL[f"delete_gone_{table}"]).fetchone()[0]) for table in TABLES}
    cover_gone(cursor, SkipReason.ERASED)
    cursor.execute(SQL["mark_erased"], {"run_ids": runs, "at": naive(at)})
    body = _Body(counts, runs)
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
