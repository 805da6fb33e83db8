"""The Store port on DuckDB: a batch and the offsets it reaches in one transaction, and all that a cycle reads back."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from daemon.core.errors import NotFoundError, OutcomeUnknownError, StaleBatchError
from daemon.core.states import RejectReason, RunState, Split
from daemon.core.types import (
    Advance,
    Batch,
    Coverage,
    DataManifest,
    DeadLetter,
    Decision,
    Example,
    Position,
    Run,
    StoreCounts,
    StoredDecision,
    StoredExample,
    TopicPartition,
)
from daemon.runtime.records import decode, encode
from daemon.store.duckdb_database import SQL, Cursor, DuckdbDatabase
from daemon.store.snapshot import write_snapshot

T = TypeVar("T")

NOT_FINAL = [state.value for state in RunState if not state.final]


class DuckdbStore:
    """See `daemon.core.ports.Store`. Holds the file's lock until `close`; raises LockedError when another process has it."""

    def __init__(self, database: DuckdbDatabase) -> None:
        self._committing = threading.Lock()  # so that batches, their seqs and the counts keep step
        self._database = database
        self._counts = self._count()

    @classmethod
    def open(cls, path: Path, *, memory_limit: int, threads: int) -> Self:
        """`memory_limit` in bytes. A store that is not there is created."""
        return cls(DuckdbDatabase(path, memory_limit=memory_limit, threads=threads))

    def next_offsets(self) -> Mapping[TopicPartition, int]:
        return {TopicPartition(topic, part): offset for topic, part, offset in self._rows("next_offsets")}

    def commit(self, batch: Batch) -> None:
        with self._committing, self._recounted_when_unknown():
            with self._database.transaction() as cursor:
                for partition, advance in batch.advances.items():
                    _advance(cursor, partition, advance, batch)
                first_seq = self._counts.last_seq + 1
                _append(cursor, "examples", [_example_row(seq, e) for seq, e in enumerate(batch.examples, first_seq)])
                _append(cursor, "dead_letters", [_dead_letter_row(letter) for letter in batch.dead_letters])
                _append(cursor, "gaps", [(g.topic, g.partition, g.start, g.stop, g.reason) for g in batch.gaps])
            self._counts = with_batch(self._counts, batch)

    def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        return [
            DeadLetter(Position(topic, part, off), RejectReason(reason), detail, key, value, _aware(at))
            for topic, part, off, reason, detail, key, value, at in self._rows("dead_letters", limit=limit)
        ]

    def counts(self) -> StoreCounts:
        """Kept as batches are committed; costs nothing."""
        return self._counts

    def examples_after(self, seq: int, *, split: Split | None = None) -> int:
        ((count,),) = self._rows("examples_after", seq=seq, split=split)
        return int(count)

    def window(self, *, after: int, up_to: int, limit: int, split: Split | None = None) -> Sequence[StoredExample]:
        rows = self._rows("window", after=after, up_to=up_to, limit=limit, split=split)
        return [
            StoredExample(seq, id_, text, label, source, Split(split_), _aware(at))
            for seq, id_, text, label, source, split_, at in rows
        ]

    def snapshot(
        self,
        folder: Path,
        *,
        data_cut: int,
        recent_after: int,
        train_limit: int,
        replay_limit: int,
        holdout_limit: int,
        seed: int,
    ) -> DataManifest:
        bounds = {"data_cut": data_cut, "recent_after": recent_after}
        drawn = {**bounds, "seed": str(seed)}
        with self._database.cursor() as cursor:
            tables = {
                f"{name}.parquet": cursor.sql(SQL[f"snapshot_{name}"], params=values).to_arrow_table()
                for name, values in (
                    ("train", {**bounds, "limit": train_limit}),
                    ("replay", {**drawn, "limit": replay_limit}),
                    ("validation", {**bounds, "limit": holdout_limit}),
                    ("holdout", {**drawn, "limit": holdout_limit}),
                )
            }
        return write_snapshot(folder, tables, data_cut=data_cut)

    def save_run(self, run: Run) -> None:
        with self._database.transaction() as cursor:
            _save_run(cursor, run)

    def runs(self, limit: int) -> Sequence[Run]:
        return [_from_json(body, Run) for (body,) in self._rows("runs", limit=limit)]

    def run(self, run_id: str) -> Run:
        rows = self._rows("run", id=run_id)
        if not rows:
            raise NotFoundError(f"there is no run {run_id!r}")
        return _from_json(rows[0][0], Run)

    def abandon_runs(self, at: datetime) -> Sequence[Run]:
        with self._database.transaction() as cursor:
            bodies = cursor.execute(SQL["runs_in_states"], {"states": NOT_FINAL}).fetchall()
            abandoned = [replace(_from_json(body, Run), state=RunState.ABANDONED, finished_at=at) for (body,) in bodies]
            for run in abandoned:
                _save_run(cursor, run)
        return abandoned

    def record(self, decision: Decision) -> int:
        with self._database.transaction() as cursor:
            (number,) = cursor.execute(SQL["next_decision"]).fetchone()
            cursor.execute(
                SQL["insert_decision"],
                {
                    "number": number,
                    "decided_at": _naive(decision.at),
                    "action": decision.action,
                    "body": _json(decision),
                },
            )
        return int(number)

    def acted(self, number: int, at: datetime) -> None:
        with self._database.transaction() as cursor:
            cursor.execute(SQL["acted"], {"number": number, "at": _naive(at)})

    def decisions(self, limit: int) -> Sequence[StoredDecision]:
        return [
            StoredDecision(number, _from_json(body, Decision), None if acted is None else _aware(acted))
            for number, body, acted in self._rows("decisions", limit=limit)
        ]

    def get(self, key: str) -> Any | None:
        rows = self._rows("get_fact", key=key)
        return _from_json(rows[0][0], object) if rows else None

    def put(self, key: str, value: Any) -> None:
        with self._database.transaction() as cursor:
            cursor.execute(SQL["delete_fact"], {"key": key})
            cursor.execute(SQL["insert_fact"], {"key": key, "value": _json(value)})

    def coverage(self) -> Coverage:
        ((offsets, examples, dead_letters, gap_offsets, placed, in_gaps, ids),) = self._rows("coverage")
        return Coverage(
            offsets=offsets,
            examples=examples,
            dead_letters=dead_letters,
            gap_offsets=gap_offsets,
            lost=offsets - placed - gap_offsets + in_gaps,
            twice=examples + dead_letters - placed + in_gaps,
            repeated_ids=examples - ids,
        )

    def close(self) -> None:
        self._database.close()

    def _rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        with self._database.cursor() as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(SQL[name], values).fetchall()
            return rows

    @contextmanager
    def _recounted_when_unknown(self) -> Iterator[None]:
        try:
            yield
        except OutcomeUnknownError:
            self._counts = self._count()
            raise

    def _count(self) -> StoreCounts:
        examples = self._rows("examples_by_split_and_label")
        ((gap_offsets,),) = self._rows("gap_offsets")
        by_split, by_label = Counter[str](), Counter[str]()
        for split, label, count, *_ in examples:
            by_split[split] += count
            by_label[label] += count
        reasons = dict(self._rows("dead_letters_by_reason"))
        return StoreCounts(
            examples=by_split.total(),
            by_split=by_split,
            by_label=by_label,
            dead_letters=sum(reasons.values()),
            dead_letters_by_reason=reasons,
            gap_offsets=gap_offsets,
            last_seq=max((seq for *_, seq, _ in examples), default=0),
            newest_occurred_at=max((_aware(newest) for *_, newest in examples), default=None),
        )


def with_batch(counts: StoreCounts, batch: Batch) -> StoreCounts:
    """The counts after this batch. `counts` itself stays as it is: somebody may be reading it."""
    times = [example.occurred_at for example in batch.examples]
    if counts.newest_occurred_at is not None:
        times.append(counts.newest_occurred_at)
    return StoreCounts(
        examples=counts.examples + len(batch.examples),
        by_split=Counter(counts.by_split) + Counter(example.split.value for example in batch.examples),
        by_label=Counter(counts.by_label) + Counter(example.label for example in batch.examples),
        dead_letters=counts.dead_letters + len(batch.dead_letters),
        dead_letters_by_reason=Counter(counts.dead_letters_by_reason)
        + Counter(letter.reason.value for letter in batch.dead_letters),
        gap_offsets=counts.gap_offsets + sum(gap.stop - gap.start for gap in batch.gaps),
        last_seq=counts.last_seq + len(batch.examples),
        newest_occurred_at=max(times, default=None),
    )


def _advance(cursor: Cursor, partition: TopicPartition, advance: Advance, batch: Batch) -> None:
    """Compare and set: raises StaleBatchError unless the store stands where the batch was made for."""
    place = {"topic": partition.topic, "part": partition.partition, "next": advance.next}
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


def _offsets_in(batch: Batch, partition: TopicPartition) -> int:
    positions = [example.position for example in batch.examples] + [letter.position for letter in batch.dead_letters]
    gaps = [gap.stop - gap.start for gap in batch.gaps if (gap.topic, gap.partition) == partition]
    return sum(position.topic_partition == partition for position in positions) + sum(gaps)


def _append(cursor: Cursor, table: str, rows: list[tuple[Any, ...]]) -> None:
    with cursor.appender(table) as appender:
        appender.append_rows(rows)


def _example_row(seq: int, example: Example) -> tuple[Any, ...]:
    position = example.position
    return (
        seq,
        position.topic,
        position.partition,
        position.offset,
        example.id,
        example.text,
        example.label,
        example.source,
        example.split,
        _naive(example.occurred_at),
        _naive(example.ingested_at),
    )


def _dead_letter_row(letter: DeadLetter) -> tuple[Any, ...]:
    position = letter.position
    return (
        position.topic,
        position.partition,
        position.offset,
        letter.reason,
        letter.detail,
        letter.key,
        letter.value,
        _naive(letter.rejected_at),
    )


def _save_run(cursor: Cursor, run: Run) -> None:
    cursor.execute(SQL["delete_run"], {"id": run.id})
    cursor.execute(
        SQL["insert_run"],
        {"id": run.id, "state": run.state, "created_at": _naive(run.created_at), "body": _json(run)},
    )


def _json(value: Any) -> str:
    return encode(value).decode()


def _from_json(body: str, kind: type[T]) -> T:
    return decode(body.encode(), kind)


def _naive(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(tzinfo=None)


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC)
