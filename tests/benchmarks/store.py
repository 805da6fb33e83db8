"""`make bench-store`: what each cycle asks of the store, at 10 million rows and on the way there, and how large its file is.

The rows are written by the store's own commit. Each question is asked with what the default policy asks for, several times;
the figure is the median in milliseconds.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.config import Config, Splits
from daemon.core.states import Split
from daemon.core.stream import Advance, Batch, Example, Position, TopicPartition
from daemon.ingest.splits import splitter
from daemon.policy.schema import Policy
from daemon.store.duckdb_store import DuckdbStore
from tests.benchmarks import report
from tests.benchmarks.fill_topic import LABELS, words

TOPIC = "examples"
BATCH = 20_000
TEXT = 80  # characters
ASKED = 5  # times
EXPECTED_MS = 200  # for each question
WHOLE_SNAPSHOT = "snapshot as Parquet"  # the four samples, compressed and written
START = datetime(2026, 1, 1, tzinfo=UTC)


def main(arguments: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2, help="of DuckDB")
    parser.add_argument("--folder", type=Path, default=report.FOLDER)
    asked = parser.parse_args(arguments)
    report.FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=report.FOLDER))
    try:
        return _measured(folder, asked.rows, asked.threads, asked.folder)
    finally:
        shutil.rmtree(folder)


def _measured(folder: Path, rows: int, threads: int, results: Path) -> Path:
    path = folder / "store.duckdb"
    store = DuckdbStore.open(path, memory_limit=Config().store.memory_limit, threads=threads)
    ratios: dict[str, float | None] = {}
    figures: dict[str, Any] = dict(report.versions("duckdb"))
    filled = _Filling(store)
    few: dict[str, float] = {}
    for step in (rows // 10, rows):
        filled.up_to(step)
        store.tidy()
        many = _answers(store, folder, step)
        figures |= {f"{question}, {step:,} rows: ms": milliseconds for question, milliseconds in many.items()}
        if not few:
            few = many
        else:
            ratios |= {f"growth_over_10x_rows: {question}": many[question] / few[question] for question in many}
    ratios["slowest_of_200_ms"] = max(many[question] for question in many if question != WHOLE_SNAPSHOT) / EXPECTED_MS
    store.close()
    file = path.stat().st_size
    ratios["file_vs_raw"] = file / filled.raw_bytes
    figures |= {"raw: MB": filled.raw_bytes / 1e6, "file: MB": file / 1e6, "filling: rows/s": filled.speed}
    return report.write("store", ratios=ratios, figures=figures, folder=results)


class _Filling:
    """Commits batch after batch. `raw_bytes`: ids, texts, labels and sources alone."""

    def __init__(self, store: DuckdbStore) -> None:
        self.raw_bytes = 0
        self._store = store
        self._rows = 0
        self._seconds = 0.0
        self._rng = random.Random(1)
        self._vocabulary = words(random.Random(7))
        self._split_of = splitter(Splits())

    @property
    def speed(self) -> float:
        return self._rows / self._seconds

    def up_to(self, rows: int) -> None:
        while self._rows < rows:
            count = min(BATCH, rows - self._rows)
            examples = [self._example(number) for number in range(self._rows, self._rows + count)]
            self.raw_bytes += sum(len(e.id) + len(e.text) + len(e.label) + len(e.source) for e in examples)
            advance = Advance(self._rows or None, self._rows + count)
            started = time.perf_counter()
            self._store.commit(Batch(examples, [], [], {TopicPartition(TOPIC, 0): advance}))
            self._seconds += time.perf_counter() - started
            self._rows += count

    def _example(self, number: int) -> Example:
        example_id = f"e-{number:09d}"
        text = " ".join(self._rng.choices(self._vocabulary, k=TEXT // 5))[:TEXT]
        at = START + timedelta(milliseconds=10 * number)
        split = self._split_of(example_id, text)
        label, source = LABELS[number % 3], f"source-{number % 4}"
        return Example(Position(TOPIC, 0, number), example_id, text, label, at, at, source, split)


def _answers(store: DuckdbStore, folder: Path, rows: int) -> dict[str, float]:
    """Milliseconds of each question that a cycle asks."""
    policy = Policy()
    trained_up_to = rows - 20_000 if rows > 40_000 else rows // 2
    drift, training = policy.drift, policy.training

    limits = {
        "train": training.max_examples,
        "replay": training.max_examples,
        "validation": policy.gates.max_holdout,
        "holdout": policy.gates.max_holdout,
    }

    def part(name: str) -> Callable[[], object]:
        return lambda: store.sample(name, data_cut=rows, recent_after=trained_up_to, limit=limits[name], seed=7)

    def snapshot() -> None:
        store.snapshot(
            folder / "snapshot",
            data_cut=rows,
            recent_after=trained_up_to,
            train_limit=limits["train"],
            replay_limit=limits["replay"],
            holdout_limit=limits["holdout"],
            seed=7,
            run_id="run",
        )

    questions: dict[str, Callable[[], object]] = {
        "counts": store.counts,
        "counts from the disk": store._count,
        "examples since": lambda: store.examples_after(trained_up_to, split=Split.TRAIN),
        "current window": lambda: store.window(after=trained_up_to, up_to=rows, limit=drift.current_examples),
        "reference window": lambda: store.window(after=0, up_to=trained_up_to, limit=drift.reference_examples),
        "holdout window": lambda: store.window(after=0, up_to=rows, limit=1000, split=Split.HOLDOUT),
        "train sample": part("train"),
        "replay sample": part("replay"),
        "validation sample": part("validation"),
        "holdout sample": part("holdout"),
        WHOLE_SNAPSHOT: snapshot,
    }
    return {question: _milliseconds(ask) for question, ask in questions.items()}


def _milliseconds(ask: Callable[[], object]) -> float:
    taken = []
    for _ in range(ASKED):
        started = time.perf_counter()
        ask()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
