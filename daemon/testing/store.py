"""The Store port in memory. It keeps the same promises as the one on disk but durability; the contract suite runs over both."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import md5
from pathlib import Path
from typing import Any

import pyarrow as pa

from daemon.core.errors import NotFoundError, OutcomeUnknownError, StaleBatchError
from daemon.core.states import RunState, Split
from daemon.core.types import (
    Batch,
    Coverage,
    DataManifest,
    DeadLetter,
    Decision,
    Example,
    Gap,
    Position,
    Run,
    StoreCounts,
    StoredDecision,
    StoredExample,
    TopicPartition,
)
from daemon.store.snapshot import SCHEMA, write_snapshot


class InMemoryStore:
    """`break_next_commit` scripts a COMMIT that raises, with the batch kept or lost."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._examples: list[Example] = []
        self._dead_letters: list[DeadLetter] = []
        self._gaps: list[Gap] = []
        self._starts: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
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
            durable, self._breaking = self._breaking, None
            if durable is not False:
                self._keep(batch)
            if durable is not None:
                raise OutcomeUnknownError("COMMIT failed, as the test asked for")

    def _keep(self, batch: Batch) -> None:
        self._examples += batch.examples
        self._dead_letters += batch.dead_letters
        self._gaps += batch.gaps
        positions = _positions(batch.examples, batch.dead_letters)
        for partition, advance in batch.advances.items():
            offsets = [position.offset for position in positions if position.topic_partition == partition]
            self._starts.setdefault(partition, min(offsets, default=advance.next))
            self._next[partition] = advance.next

    def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        with self._lock:
            return self._dead_letters[::-1][:limit]

    def counts(self) -> StoreCounts:
        with self._lock:
            return StoreCounts(
                examples=len(self._examples),
                by_split=Counter(example.split.value for example in self._examples),
                by_label=Counter(example.label for example in self._examples),
                dead_letters=len(self._dead_letters),
                dead_letters_by_reason=Counter(letter.reason.value for letter in self._dead_letters),
                gap_offsets=sum(gap.stop - gap.start for gap in self._gaps),
                last_seq=len(self._examples),
                newest_occurred_at=max((example.occurred_at for example in self._examples), default=None),
            )

    def coverage(self) -> Coverage:
        with self._lock:
            positions = _positions(self._examples, self._dead_letters)
            ended = Counter((position.topic_partition, position.offset) for position in positions)
            for gap in self._gaps:
                ended.update((TopicPartition(gap.topic, gap.partition), off) for off in range(gap.start, gap.stop))
            taken = {
                (partition, offset)
                for partition, start in self._starts.items()
                for offset in range(start, self._next[partition])
            }
            return Coverage(
                offsets=len(taken),
                examples=len(self._examples),
                dead_letters=len(self._dead_letters),
                gap_offsets=sum(gap.stop - gap.start for gap in self._gaps),
                lost=len(taken - ended.keys()),
                twice=ended.total() - len(taken & ended.keys()),
                repeated_ids=len(self._examples) - len({example.id for example in self._examples}),
            )

    def examples_after(self, seq: int, *, split: Split | None = None) -> int:
        return len(self._between(seq, len(self._examples), split))

    def window(self, *, after: int, up_to: int, limit: int, split: Split | None = None) -> Sequence[StoredExample]:
        return _newest(self._between(after, up_to, split), limit)

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
        past = min(recent_after, data_cut)

        def drawn(example: StoredExample) -> tuple[str, int]:
            return md5(f"{example.id}:{seed}".encode()).hexdigest(), example.seq

        recent_holdout = self._between(recent_after, data_cut, Split.HOLDOUT)
        past_holdout = sorted(self._between(0, past, Split.HOLDOUT), key=drawn)
        chosen = {
            "train.parquet": _newest(self._between(recent_after, data_cut, Split.TRAIN), train_limit),
            "replay.parquet": _evenly(sorted(self._between(0, past, Split.TRAIN), key=drawn), replay_limit),
            "validation.parquet": _newest(self._between(0, data_cut, Split.VALIDATION), holdout_limit),
            "holdout.parquet": [*past_holdout[:holdout_limit], *_newest(recent_holdout, holdout_limit)],
        }
        tables = {name: _table(examples, recent_after) for name, examples in chosen.items()}
        return write_snapshot(folder, tables, data_cut=data_cut)

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

    def get(self, key: str) -> Any | None:
        with self._lock:
            return self._facts.get(key)

    def put(self, key: str, value: Any) -> None:
        with self._lock:
            self._facts[key] = value

    def close(self) -> None:
        pass

    def _between(self, after: int, up_to: int, split: Split | None) -> list[StoredExample]:
        with self._lock:
            numbered = list(enumerate(self._examples, 1))[after:up_to]
        return [
            StoredExample(seq, e.id, e.text, e.label, e.source, e.split, e.occurred_at)
            for seq, e in numbered
            if split is None or e.split == split
        ]


def _positions(examples: Sequence[Example], dead_letters: Sequence[DeadLetter]) -> list[Position]:
    return [example.position for example in examples] + [letter.position for letter in dead_letters]


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
