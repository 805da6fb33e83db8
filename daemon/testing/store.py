"""The Store port in memory. It keeps the same promises as the one on disk but durability; the contract suite runs over both."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import md5
from pathlib import Path
from typing import Any

import pyarrow as pa

from daemon.core.errors import NotFoundError, OutcomeUnknownError, StaleBatchError
from daemon.core.states import RunState, Split
from daemon.core.stream import (
    Amendment,
    Batch,
    Coverage,
    DeadLetter,
    Example,
    Gap,
    Half,
    ListedLetter,
    Quarantined,
    Skip,
    StoreCounts,
    StoredExample,
    Tail,
    TopicPartition,
)
from daemon.core.types import DataManifest, Decision, Run, StoredDecision
from daemon.store.sample_queries import share_of
from daemon.store.sampling import drawn_ranges
from daemon.store.snapshot import SCHEMA, write_snapshot


class InMemoryStore:
    """`break_next_commit` scripts a COMMIT that raises, with the batch kept or lost."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._examples: dict[int, Example] = {}  # by seq
        self._dead_letters: list[DeadLetter] = []
        self._quarantined: list[Quarantined] = []
        self._halves: list[Half] = []
        self._skips: list[Skip] = []
        self._gaps: list[Gap] = []
        self._last_seq = 0
        self._starts: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        self._tails: dict[TopicPartition, Tail] = {}
        self._runs: dict[str, Run] = {}
        self._decisions: list[StoredDecision] = []
        self._facts: dict[str, Any] = {}
        self._breaking: bool | None = None

    def break_next_commit(self, *, durable: bool) -> None:
        self._breaking = durable

    def next_offsets(self) -> Mapping[TopicPartition, int]:
        with self._lock:
            return dict(self._next)

    def commit(self, batch: Batch) -> None:
        with self._lock:
            for partition, advance in batch.advances.items():
                if self._next.get(partition) != advance.expected:
                    raise StaleBatchError(f"{partition}: the store does not stand at {advance.expected}")
            with self._breaking_commit() as durable:
                if durable:
                    self._keep(batch)
                    self._advance(batch)

    def tidy(self) -> None:
        pass

    def tails(self) -> Mapping[TopicPartition, Tail]:
        with self._lock:
            return dict(self._tails)

    def amend(self, amendment: Amendment) -> None:
        if misplaced := amendment.misplaced():
            raise ValueError(f"these would end nowhere or in two places: {', '.join(sorted(map(str, misplaced)))}")
        gone = set(amendment.positions)
        with self._lock:
            letters = [letter for letter in self._dead_letters if letter.position not in gone]
            quarantined = [one for one in self._quarantined if one.example.position not in gone]
            held = len(self._dead_letters) + len(self._quarantined)
            removed = held - len(letters) - len(quarantined)
            if removed != len(amendment.positions):
                raise StaleBatchError(f"only {removed} of {len(amendment.positions)} records are still there")
            with self._breaking_commit() as durable:
                if durable:
                    self._dead_letters, self._quarantined = letters, quarantined
                    self._keep(amendment.as_batch())

    @contextmanager
    def _breaking_commit(self) -> Iterator[bool]:
        """Whether to write; raises afterwards when a test asked for that."""
        durable, self._breaking = self._breaking, None
        yield durable is not False
        if durable is not None:
            raise OutcomeUnknownError("COMMIT failed, as the test asked for")

    def _keep(self, batch: Batch) -> None:
        self._examples.update(enumerate(batch.examples, self._last_seq + 1))
        self._last_seq += len(batch.examples)
        self._dead_letters += batch.dead_letters
        self._quarantined += batch.quarantined
        self._halves += batch.halves
        self._skips += batch.skips
        self._gaps += batch.gaps

    def _advance(self, batch: Batch) -> None:
        ended = _endings(batch.examples, batch.dead_letters, batch.quarantined, batch.halves, batch.skips, batch.gaps)
        for partition, advance in batch.advances.items():
            offsets = [offset for place, offset in ended.elements() if place == partition]
            self._starts.setdefault(partition, min(offsets, default=advance.next))
            self._next[partition] = advance.next
            if advance.tail is not None:
                self._tails[partition] = advance.tail

    def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        with self._lock:
            return self._dead_letters[::-1][:limit]

    def listed_letters(self, limit: int, *, reason: str | None = None) -> Sequence[ListedLetter]:
        with self._lock:
            chosen = [letter for letter in self._dead_letters[::-1] if reason in (None, letter.reason)]
            return [ListedLetter(each.position, each.reason, each.detail, each.rejected_at) for each in chosen[:limit]]

    def quarantined(self, limit: int) -> Sequence[Quarantined]:
        with self._lock:
            return self._quarantined[::-1][:limit]

    def halves(self, ids: Sequence[str]) -> Sequence[Half]:
        with self._lock:
            return [half for half in self._halves if half.id in ids]

    def counts(self) -> StoreCounts:
        with self._lock:
            examples = self._examples.values()
            return StoreCounts(
                examples=len(examples),
                by_split=Counter(example.split.value for example in examples),
                by_label=Counter(example.label for example in examples),
                dead_letters=len(self._dead_letters),
                dead_letters_by_reason=Counter(letter.reason.value for letter in self._dead_letters),
                gap_offsets=_length(self._gaps),
                last_seq=self._last_seq,
                newest_occurred_at=max((example.occurred_at for example in examples), default=None),
                quarantined=len(self._quarantined),
                quarantined_by_reason=Counter(one.reason.value for one in self._quarantined),
                skipped_offsets=_length(self._skips),
                halves=len(self._halves),
                held_out_by_label=Counter(one.label for one in examples if one.split == Split.HOLDOUT),
            )

    def coverage(self) -> Coverage:
        with self._lock:
            examples = self._examples.values()
            ended = _endings(examples, self._dead_letters, self._quarantined, self._halves, self._skips, self._gaps)
            taken = {
                (partition, offset)
                for partition, start in self._starts.items()
                for offset in range(start, self._next[partition])
            }
            return Coverage(
                offsets=len(taken),
                examples=len(examples),
                dead_letters=len(self._dead_letters),
                gap_offsets=_length(self._gaps),
                lost=len(taken - ended.keys()),
                twice=ended.total() - len(taken & ended.keys()),
                repeated_ids=len(examples) - len({example.id for example in examples}),
                quarantined=len(self._quarantined),
                skipped_offsets=_length(self._skips),
                halves=len(self._halves),
            )

    def examples_after(self, seq: int, *, split: Split | None = None) -> int:
        return len(self._between(seq, self._last_seq, split))

    def window(
        self,
        *,
        after: int,
        up_to: int,
        limit: int,
        split: Split | None = None,
        max_lateness: timedelta | None = None,
    ) -> Sequence[StoredExample]:
        return _newest(self._between(after, up_to, split, max_lateness or timedelta.max), limit)

    def late_examples(self, *, after: int, up_to: int, max_lateness: timedelta) -> int:
        return len(self._between(after, up_to, None)) - len(self._between(after, up_to, None, max_lateness))

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
        past = min(recent_after, data_cut)

        def drawn(example: StoredExample) -> tuple[str, int]:
            return md5(f"{example.id}:{seed}".encode()).hexdigest(), example.seq

        recent_holdout = self._between(recent_after, data_cut, Split.HOLDOUT)
        past_holdout = sorted(self._drawn(past, holdout_limit, Split.HOLDOUT, seed), key=drawn)
        chosen = {
            "train.parquet": _newest(self._between(recent_after, data_cut, Split.TRAIN), train_limit),
            "replay.parquet": _evenly(
                sorted(self._drawn(past, replay_limit, Split.TRAIN, seed), key=drawn), replay_limit
            ),
            "validation.parquet": _newest(self._between(0, data_cut, Split.VALIDATION), holdout_limit),
            "holdout.parquet": [*past_holdout[:holdout_limit], *_newest(recent_holdout, holdout_limit)],
        }
        tables = {name: _table(examples, recent_after) for name, examples in chosen.items()}
        return write_snapshot(folder, tables, data_cut=data_cut)

    def _drawn(self, past: int, limit: int, split: Split, seed: int) -> list[StoredExample]:
        """Of the blocks from which the other store draws, too."""
        share = share_of(self.counts(), split)
        ranges = drawn_ranges(past, limit, share, seed)
        return [example for first, last in ranges for example in self._between(first, last, split)]

    def save_run(self, run: Run) -> None:
        with self._lock:
            self._runs[run.id] = run

    def runs(self, limit: int) -> Sequence[Run]:
        with self._lock:
            return sorted(self._runs.values(), key=lambda run: (run.created_at, run.id), reverse=True)[:limit]

    def run(self, run_id: str) -> Run:
        with self._lock:
            if run_id not in self._runs:
                raise NotFoundError(f"there is no run {run_id!r}")
            return self._runs[run_id]

    def abandon_runs(self, at: datetime) -> Sequence[Run]:
        with self._lock:
            abandoned = [
                replace(run, state=RunState.ABANDONED, finished_at=at)
                for run in self._runs.values()
                if not run.state.final
            ]
            self._runs.update({run.id: run for run in abandoned})
            return abandoned

    def record(self, decision: Decision) -> int:
        with self._lock:
            self._decisions.append(StoredDecision(len(self._decisions) + 1, decision, None))
            return len(self._decisions)

    def acted(self, number: int, at: datetime) -> None:
        with self._lock:
            self._decisions[number - 1] = replace(self._decisions[number - 1], acted_at=at)

    def decisions(self, limit: int) -> Sequence[StoredDecision]:
        with self._lock:
            return self._decisions[::-1][:limit]

    def unacted(self) -> Sequence[StoredDecision]:
        with self._lock:
            return [stored for stored in self._decisions if stored.acted_at is None]

    def get(self, key: str) -> Any | None:
        with self._lock:
            return self._facts.get(key)

    def put(self, key: str, value: Any) -> None:
        with self._lock:
            self._facts[key] = value

    def close(self) -> None:
        pass

    def _between(
        self, after: int, up_to: int, split: Split | None, max_lateness: timedelta = timedelta.max
    ) -> list[StoredExample]:
        with self._lock:
            return [
                StoredExample(seq, e.id, e.text, e.label, e.source, e.split, e.occurred_at)
                for seq, e in self._examples.items()
                if after < seq <= up_to and split in (None, e.split) and e.ingested_at - e.occurred_at <= max_lateness
            ]


def _endings(
    examples: Iterable[Example],
    dead_letters: Iterable[DeadLetter],
    quarantined: Iterable[Quarantined],
    halves: Iterable[Half],
    skips: Iterable[Skip],
    gaps: Iterable[Gap],
) -> Counter[tuple[TopicPartition, int]]:
    """How often each offset ended somewhere."""
    positions = [
        *(example.position for example in examples),
        *(letter.position for letter in dead_letters),
        *(one.example.position for one in quarantined),
        *(half.position for half in halves),
    ]
    ended = Counter((position.topic_partition, position.offset) for position in positions)
    ranges: list[Skip | Gap] = [*skips, *gaps]
    for one in ranges:
        ended.update((TopicPartition(one.topic, one.partition), offset) for offset in range(one.start, one.stop))
    return ended


def _length(ranges: Iterable[Skip | Gap]) -> int:
    return sum(one.stop - one.start for one in ranges)


def _newest(examples: list[StoredExample], limit: int) -> list[StoredExample]:
    return examples[max(0, len(examples) - limit) :]


def _evenly(examples: list[StoredExample], limit: int) -> list[StoredExample]:
    """The first of each label, then the second of each, and so on."""
    seen = Counter[str]()
    places = []
    for example in examples:
        places.append((seen[example.label], example.label, example))
        seen[example.label] += 1
    return [example for *_, example in sorted(places, key=lambda place: place[:2])[:limit]]


def _table(examples: list[StoredExample], recent_after: int) -> pa.Table:
    rows = [
        {name: getattr(example, name) for name in SCHEMA.names if name != "recent"}
        | {"recent": example.seq > recent_after}
        for example in sorted(examples, key=lambda example: example.seq)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
