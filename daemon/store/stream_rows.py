"""The stream's tables as rows: a batch written, and what operators look at read back. Times are stored naive, as UTC."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from daemon.core.errors import StaleBatchError
from daemon.core.states import HalfKind, QuarantineReason, RejectReason, Split
from daemon.core.stream import (
    Advance,
    Batch,
    DeadLetter,
    Example,
    Gap,
    Half,
    ListedLetter,
    Position,
    Quarantined,
    Skip,
    Tail,
    TopicPartition,
)
from daemon.runtime.arrow_examples import as_columns, integers
from daemon.store.duckdb_database import SQL, Cursor

Row = tuple[Any, ...]


class Numbers(NamedTuple):
    """The last ones given to an example and to a dead letter. They are never given again, whatever is deleted."""

    seq: int
    letter: int


def append_batch(cursor: Cursor, batch: Batch, last: Numbers) -> Numbers:
    """All rows but the offsets; returns the last numbers they took."""
    _insert_examples(cursor, batch.examples, last.seq + 1)
    _append(cursor, "dead_letters", (_letter_row(seq, e) for seq, e in enumerate(batch.dead_letters, last.letter + 1)))
    _append(cursor, "quarantine", map(_quarantined_row, batch.quarantined))
    _append(cursor, "halves", map(_half_row, batch.halves))
    _append(cursor, "skips", map(_range_row, batch.skips))
    _append(cursor, "gaps", map(_range_row, batch.gaps))
    taken = Numbers(last.seq + len(batch.examples), last.letter + len(batch.dead_letters))
    cursor.execute(SQL["set_last_numbers"], {"last_seq": taken.seq, "last_letter": taken.letter})
    return taken


def advance_offsets(cursor: Cursor, partition: TopicPartition, advance: Advance, batch: Batch) -> None:
    """Compare and set: raises StaleBatchError unless the store stands where the batch was made for."""
    place = {"topic": partition.topic, "part": partition.partition, "next": advance.next, **_tail_columns(advance.tail)}
    if advance.expected is None:
        start = advance.next - _offsets_in(batch, partition)
        cursor.execute(SQL["first_advance"], {**place, "start": start})
    else:
        cursor.execute(SQL["advance"], {**place, "expected": advance.expected})
    ((changed,),) = cursor.fetchall()
    if changed != 1:
        raise StaleBatchError(
            f"{partition.topic}[{partition.partition}]: the store does not stand at {advance.expected}; nothing was written"
        )


def take_out(cursor: Cursor, positions: Sequence[Position]) -> None:
    """Delete these from the dead letters and quarantine. Raises StaleBatchError unless each of them was there, once."""
    columns = {
        "topics": [position.topic for position in positions],
        "parts": [position.partition for position in positions],
        "offsets": [position.offset for position in positions],
    }
    removed = 0
    for table in ("dead_letters", "quarantine"):
        ((count,),) = cursor.execute(SQL[f"take_out_of_{table}"], columns).fetchall()
        removed += count
    if removed != len(positions):
        raise StaleBatchError(
            f"only {removed} of {len(positions)} records are still among the dead letters or in quarantine; "
            "nothing was changed; list them again"
        )


def dead_letter(row: Row) -> DeadLetter:
    topic, part, off, reason, detail, key, value, at = row
    return DeadLetter(Position(topic, part, off), RejectReason(reason), detail, key, value, aware(at))


def listed_letter(row: Row) -> ListedLetter:
    topic, part, off, reason, detail, at = row
    return ListedLetter(Position(topic, part, off), RejectReason(reason), detail, aware(at))


def quarantined(row: Row) -> Quarantined:
    topic, part, off, id_, text, label, source, split, occurred_at, ingested_at, subject, reason, detail = row
    example = Example(
        position=Position(topic, part, off),
        id=id_,
        text=text,
        label=label,
        occurred_at=aware(occurred_at),
        ingested_at=aware(ingested_at),
        source=source,
        split=Split(split),
        subject=subject,
    )
    return Quarantined(example, QuarantineReason(reason), detail)


def half(row: Row) -> Half:
    topic, part, off, kind, id_, text, label, prediction, version, source, occurred_at, ingested_at, subject = row
    return Half(
        position=Position(topic, part, off),
        kind=HalfKind(kind),
        id=id_,
        text=text,
        label=label,
        prediction=prediction,
        version=version,
        occurred_at=aware(occurred_at),
        ingested_at=aware(ingested_at),
        source=source,
        subject=subject,
    )


def naive(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(tzinfo=None)


def aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC)


def _tail_columns(last: Tail | None) -> dict[str, Any]:
    return {
        "tail_off": last.offset if last else None,
        "tail_ts": last.timestamp if last else None,
        "tail_key": last.key_hash if last else None,
        "tail_value": last.value_hash if last else None,
        "leader_epoch": last.leader_epoch if last else None,
    }


def _offsets_in(batch: Batch, partition: TopicPartition) -> int:
    """How many of a partition's offsets the batch says something about."""
    examples = as_columns(batch.examples)
    positions = [
        *(letter.position for letter in batch.dead_letters),
        *(one.example.position for one in batch.quarantined),
        *(half.position for half in batch.halves),
    ]
    ranges: list[Gap | Skip] = [*batch.gaps, *batch.skips]
    return (
        [*zip(examples.column("topic"), examples.column("part"), strict=True)].count(partition)
        + sum(position.topic_partition == partition for position in positions)
        + sum(one.stop - one.start for one in ranges if (one.topic, one.partition) == partition)
    )


def _insert_examples(cursor: Cursor, examples: Sequence[Example], first_seq: int) -> None:
    if examples:
        seqs = integers(range(first_seq, first_seq + len(examples)))
        cursor.register("new_examples", as_columns(examples).table.append_column("seq", seqs))
        cursor.execute(SQL["insert_new_examples"])
        cursor.unregister("new_examples")


def _append(cursor: Cursor, table: str, rows: Iterable[Row]) -> None:
    listed = list(rows)
    if listed:
        with cursor.appender(table) as appender:
            appender.append_rows(listed)


def _place(position: Position) -> Row:
    return position.topic, position.partition, position.offset


def _content(example: Example) -> Row:
    return (
        *_place(example.position),
        example.id,
        example.text,
        example.label,
        example.source,
        example.split,
        naive(example.occurred_at),
        naive(example.ingested_at),
        example.subject,
    )


def _letter_row(seq: int, letter: DeadLetter) -> Row:
    return (
        seq,
        *_place(letter.position),
        letter.reason,
        letter.detail,
        letter.key,
        letter.value,
        naive(letter.rejected_at),
    )


def _quarantined_row(one: Quarantined) -> Row:
    return (*_content(one.example), one.reason, one.detail)


def _half_row(half: Half) -> Row:
    return (
        *_place(half.position),
        half.kind,
        half.id,
        half.text,
        half.label,
        half.prediction,
        half.version,
        half.source,
        naive(half.occurred_at),
        naive(half.ingested_at),
        half.subject,
    )


def _range_row(one: Skip | Gap) -> Row:
    return one.topic, one.partition, one.start, one.stop, one.reason
