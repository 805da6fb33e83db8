"""The Store port on DuckDB: a batch and the offsets it reaches in one transaction, and all that a cycle reads back."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from daemon.core.errors import NotFoundError, OutcomeUnknownError
from daemon.core.states import RunState, Split
from daemon.core.stream import (
    Amendment,
    Batch,
    Coverage,
    DeadLetter,
    Half,
    ListedLetter,
    Quarantined,
    StoreCounts,
    StoredExample,
    Tail,
    TopicPartition,
)
from daemon.core.types import DataManifest, Decision, Run, StoredDecision
from daemon.runtime.arrow_examples import column, newest_time
from daemon.runtime.records import decode, encode
from daemon.store.coverage import read_coverage
from daemon.store.duckdb_database import SQL, Cursor, DuckdbDatabase
from daemon.store.erasure import without_erased
from daemon.store.letters import read_page
from daemon.store.run_data import remember_run_data
from daemon.store.sample_queries import read_sample, share_of
from daemon.store.sampling import newest_ranges
from daemon.store.snapshot import write_snapshot
from daemon.store.stream_rows import (
    Numbers,
    advance_offsets,
    append_batch,
    aware,
    half,
    listed_letter,
    naive,
    quarantined,
    take_out,
)

T = TypeVar("T")

QUIET_LOG = 16 << 20  # bytes of write-ahead log worth folding into the file when nothing else happens
NOT_FINAL = [state.value for state in RunState if not state.final]


class DuckdbStore:
    """See `daemon.core.ports.Store`. Holds the file's lock until `close`; raises LockedError when another process has it."""

    def __init__(self, database: DuckdbDatabase) -> None:
        self._committing = threading.Lock()  # so that batches, their seqs and the counts keep step
        self._lives = threading.RLock()  # so that nobody is forgotten between a snapshot and what is kept in mind of it
        self.database = database
        self.erased: Collection[str]  # whose records are taken no more
        self._numbers: Numbers
        self._counts: StoreCounts
        self._read_again()

    @classmethod
    def open(cls, path: Path, *, memory_limit: int, threads: int) -> Self:
        """`memory_limit` in bytes. A store that is not there is created."""
        return cls(DuckdbDatabase(path, memory_limit=memory_limit, threads=threads))

    def identity(self) -> str:
        """The store's id: another file has another one, a restored backup the same."""
        ((store_id, _),) = self._rows("identity")
        return str(store_id)

    def next_offsets(self) -> Mapping[TopicPartition, int]:
        return {TopicPartition(topic, part): offset for topic, part, offset in self._rows("next_offsets")}

    def commit(self, batch: Batch) -> None:
        with self._committing, self._read_again_when_unknown():
            batch = without_erased(batch, self.erased)
            with self.database.transaction() as cursor:
                for partition, advance in batch.advances.items():
                    advance_offsets(cursor, partition, advance, batch)
                numbers = append_batch(cursor, batch, self._numbers)
            self._numbers = numbers
            self._counts = with_batch(self._counts, batch)

    def tidy(self) -> None:
        with self._committing, self._read_again_when_unknown():
            self.database.checkpoint(at_least=QUIET_LOG)

    def tails(self) -> Mapping[TopicPartition, Tail]:
        return {TopicPartition(topic, part): Tail(*columns) for topic, part, *columns in self._rows("tails")}

    def amend(self, amendment: Amendment) -> None:
        if misplaced := amendment.misplaced():
            raise ValueError(f"these would end nowhere or in two places: {', '.join(sorted(map(str, misplaced)))}")
        with self._committing, self._read_again_when_unknown():
            with self.database.transaction() as cursor:
                take_out(cursor, amendment.positions)
                append_batch(cursor, without_erased(amendment.as_batch(), self.erased), self._numbers)
            self._read_again()

    def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        with self.database.cursor() as cursor:
            return [letter for _, letter in read_page(cursor, "newest_letters", most=1 << 62, limit=limit)][::-1]

    def listed_letters(self, limit: int, *, reason: str | None = None) -> Sequence[ListedLetter]:
        return [listed_letter(row) for row in self._rows("listed_letters", limit=limit, reason=reason)]

    def letters_after(self, seq: int, limit: int) -> Sequence[tuple[int, DeadLetter]]:
        """Dead letters with their numbers, the oldest first; fewer where they are large."""
        with self.database.cursor() as cursor:
            return read_page(cursor, "letters_after", seq=seq, limit=limit)

    def letters_waiting(self, seq: int) -> tuple[int, datetime | None]:
        """How many have a greater number, and when the oldest of them was rejected."""
        ((count, oldest),) = self._rows("letters_waiting", seq=seq)
        return int(count), None if oldest is None else aware(oldest)

    def quarantined(self, limit: int) -> Sequence[Quarantined]:
        return [quarantined(row) for row in self._rows("quarantined", limit=limit)]

    def halves(self, ids: Sequence[str]) -> Sequence[Half]:
        return [half(row) for row in self._rows("halves", ids=list(ids))]

    def counts(self) -> StoreCounts:
        """Kept as batches are committed; costs nothing."""
        return self._counts

    def examples_after(self, seq: int, *, split: Split | None = None) -> int:
        ((count,),) = self._rows("examples_after", seq=seq, split=split)
        return int(count)

    def window(
        self,
        *,
        after: int,
        up_to: int,
        limit: int,
        split: Split | None = None,
        max_lateness: timedelta | None = None,
    ) -> Sequence[StoredExample]:
        rows: list[tuple[Any, ...]] = []
        top = min(up_to, self._counts.last_seq)
        wanted = {"limit": limit, "split": split, "max_lateness": max_lateness}
        for first, last in newest_ranges(after, max(after, top), limit, share_of(self._counts, split)):
            rows = self._rows("window", after=first, up_to=last, **wanted)
            if len(rows) >= limit:
                break
        return [
            StoredExample(seq, id_, text, label, source, Split(split_), aware(at))
            for seq, id_, text, label, source, split_, at in rows
        ]

    def late_examples(self, *, after: int, up_to: int, max_lateness: timedelta) -> int:
        ((count,),) = self._rows("late_examples", after=after, up_to=up_to, max_lateness=max_lateness)
        return int(count)

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
        run_id: str,
    ) -> DataManifest:
        limits = {"train": train_limit, "replay": replay_limit, "validation": holdout_limit, "holdout": holdout_limit}
        with self._lives:
            tables = {
                f"{name}.parquet": self.sample(
                    name, data_cut=data_cut, recent_after=recent_after, limit=limit, seed=seed
                )
                for name, limit in limits.items()
            }
            manifest = write_snapshot(folder, tables, data_cut=data_cut)
            with self.database.transaction() as cursor:
                remember_run_data(cursor, run_id, manifest, tables)
        return manifest

    def sample(self, name: str, *, data_cut: int, recent_after: int, limit: int, seed: int) -> Any:
        """One of a snapshot's tables, in Arrow: train, replay, validation or holdout."""
        with self.database.cursor() as cursor:
            return read_sample(cursor, name, data_cut, recent_after, limit, seed, self._counts)

    def save_run(self, run: Run) -> None:
        with self.database.transaction() as cursor:
            _save_run(cursor, run)

    def runs(self, limit: int) -> Sequence[Run]:
        return [_from_json(body, Run) for (body,) in self._rows("runs", limit=limit)]

    def run(self, run_id: str) -> Run:
        rows = self._rows("run", id=run_id)
        if not rows:
            raise NotFoundError(f"there is no run {run_id!r}")
        return _from_json(rows[0][0], Run)

    def abandon_runs(self, at: datetime) -> Sequence[Run]:
        with self.database.transaction() as cursor:
            bodies = cursor.execute(SQL["runs_in_states"], {"states": NOT_FINAL}).fetchall()
            abandoned = [replace(_from_json(body, Run), state=RunState.ABANDONED, finished_at=at) for (body,) in bodies]
            for run in abandoned:
                _save_run(cursor, run)
        return abandoned

    def record(self, decision: Decision) -> int:
        with self.database.transaction() as cursor:
            (number,) = cursor.execute(SQL["next_decision"]).fetchone()
            cursor.execute(
                SQL["insert_decision"],
                {
                    "number": number,
                    "decided_at": naive(decision.at),
                    "action": decision.action,
                    "body": _json(decision),
                },
            )
        return int(number)

    def acted(self, number: int, at: datetime) -> None:
        with self.database.transaction() as cursor:
            cursor.execute(SQL["acted"], {"number": number, "at": naive(at)})

    def decisions(self, limit: int) -> Sequence[StoredDecision]:
        return list(map(_decision, self._rows("decisions", limit=limit)))

    def unacted(self) -> Sequence[StoredDecision]:
        return list(map(_decision, self._rows("unacted_decisions")))

    def get(self, key: str) -> Any | None:
        rows = self._rows("get_fact", key=key)
        return _from_json(rows[0][0], object) if rows else None

    def put(self, key: str, value: Any) -> None:
        with self.database.transaction() as cursor:
            cursor.execute(SQL["delete_fact"], {"key": key})
            cursor.execute(SQL["insert_fact"], {"key": key, "value": _json(value)})

    def coverage(self) -> Coverage:
        with self.database.cursor() as cursor:
            return read_coverage(cursor)

    @contextmanager
    def deletion(self) -> Iterator[Cursor]:
        """A transaction for the keeper, which takes things out: snapshots and batches wait until all is read again.

        Each row group of which some rows were taken out costs DuckDB 256 KiB of memory from then on until a checkpoint: that
        follows at once, and one transaction takes rows out of no more groups than there is memory for.
        """
        with self._lives, self._committing, self._read_again_when_unknown():
            with self.database.transaction() as cursor:
                yield cursor
            before = self._counts.skipped_offsets
            self._read_again()
            if self._counts.skipped_offsets != before:
                self.database.checkpoint(at_least=0)

    def close(self) -> None:
        self.database.close()

    def _rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.database.cursor() as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(SQL[name], values).fetchall()
            return rows

    @contextmanager
    def _read_again_when_unknown(self) -> Iterator[None]:
        try:
            yield
        except OutcomeUnknownError:
            self._read_again()
            raise

    def _read_again(self) -> None:
        """What is kept in mind, as the tables have it: only they know what became of a transaction."""
        self.erased = {subject for (subject,) in self._rows("erased_subjects")}
        ((seq, letter),) = self._rows("last_numbers")
        self._numbers = Numbers(seq, letter)
        self._counts = self._count()

    def _count(self) -> StoreCounts:
        examples = self._rows("examples_by_split_and_label")
        ((gap_offsets, skipped_offsets, halves),) = self._rows("range_counts")
        by_split, by_label, held_out = Counter[str](), Counter[str](), Counter[str]()
        for split, label, count, _ in examples:
            by_split[split] += count
            by_label[label] += count
            held_out[label] += count if split == Split.HOLDOUT else 0
        reasons = dict(self._rows("dead_letters_by_reason"))
        quarantined = dict(self._rows("quarantined_by_reason"))
        return StoreCounts(
            examples=by_split.total(),
            by_split=by_split,
            by_label=by_label,
            dead_letters=sum(reasons.values()),
            dead_letters_by_reason=reasons,
            gap_offsets=gap_offsets,
            last_seq=self._numbers.seq,
            newest_occurred_at=max((aware(newest) for *_, newest in examples), default=None),
            quarantined=sum(quarantined.values()),
            quarantined_by_reason=quarantined,
            skipped_offsets=skipped_offsets,
            halves=halves,
            held_out_by_label=+held_out,
        )


def with_batch(counts: StoreCounts, batch: Batch) -> StoreCounts:
    """The counts after this batch. `counts` itself stays as it is: somebody may be reading it."""
    examples = batch.examples
    labels, splits = column(examples, "label"), column(examples, "split")
    times = [at for at in (counts.newest_occurred_at, newest_time(examples)) if at is not None]
    return StoreCounts(
        examples=counts.examples + len(examples),
        by_split=_plus(counts.by_split, splits),
        by_label=_plus(counts.by_label, labels),
        dead_letters=counts.dead_letters + len(batch.dead_letters),
        dead_letters_by_reason=_plus(counts.dead_letters_by_reason, [letter.reason for letter in batch.dead_letters]),
        gap_offsets=counts.gap_offsets + sum(gap.stop - gap.start for gap in batch.gaps),
        last_seq=counts.last_seq + len(batch.examples),
        newest_occurred_at=max(times, default=None),
        quarantined=counts.quarantined + len(batch.quarantined),
        quarantined_by_reason=_plus(counts.quarantined_by_reason, [one.reason for one in batch.quarantined]),
        skipped_offsets=counts.skipped_offsets + sum(skip.stop - skip.start for skip in batch.skips),
        halves=counts.halves + len(batch.halves),
        held_out_by_label=_plus(
            counts.held_out_by_label,
            [label for label, split in zip(labels, splits, strict=True) if split == Split.HOLDOUT],
        ),
    )


def _plus(counted: Mapping[str, int], more: Sequence[str]) -> Mapping[str, int]:
    counts = Counter({str(name): count for name, count in Counter(more).items()})
    counts.update(counted)
    return counts


def _save_run(cursor: Cursor, run: Run) -> None:
    cursor.execute(SQL["delete_run"], {"id": run.id})
    cursor.execute(
        SQL["insert_run"],
        {"id": run.id, "state": run.state, "created_at": naive(run.created_at), "body": _json(run)},
    )


def _decision(row: tuple[Any, ...]) -> StoredDecision:
    number, body, acted = row
    return StoredDecision(number, _from_json(body, Decision), None if acted is None else aware(acted))


def _json(value: Any) -> str:
    return encode(value).decode()


def _from_json(body: str, kind: type[T]) -> T:
    return decode(body.encode(), kind)
