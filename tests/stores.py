"""A store on disk and what goes into it, for tests."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from daemon.core.states import RejectReason, Split
from daemon.core.stream import Advance, Batch, DeadLetter, Example, Position, TopicPartition
from daemon.store import duckdb_database
from daemon.store.database_file import duckdb_options
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import START

ROOT = Path(__file__).parents[1]
ZERO = TopicPartition("examples", 0)
OPTIONS = duckdb_options(1 << 28, 1)
PERSON, SENTINEL = "hash-of-the-person", "SENTINEL-OF-THE-PERSON"
PRELUDE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from daemon.store.keeper import DuckdbKeeper
from tests.stores import START, opened
"""


def path_in(folder: Path) -> Path:
    return folder / "data" / "store.duckdb"


def opened(folder: Path) -> DuckdbStore:
    return DuckdbStore.open(path_in(folder), memory_limit=1 << 28, threads=1)


def example(offset: int, *, at: datetime = START, subject: str | None = None, text: str = "text") -> Example:
    position = Position("examples", 0, offset)
    return Example(position, f"id-{offset}", text, "yes", at, at, "source", Split.TRAIN, subject)


def commit(store: DuckdbStore, *examples: Example) -> None:
    first = examples[0].position.offset
    store.commit(Batch(examples, [], [], {ZERO: Advance(first or None, first + len(examples))}))


def letter(offset: int, value: bytes, at: datetime = START) -> DeadLetter:
    return DeadLetter(Position("examples", 0, offset), RejectReason.NOT_JSON, "detail", None, value, at)


def killed_at(failpoint: str, script: str) -> None:
    """Run a script, behind PRELUDE, in a process of its own that dies there."""
    killed = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env={**os.environ, "RELEARND_FAILPOINT": failpoint},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr


def snapshot(store: DuckdbStore, folder: Path, run_id: str, cut: int) -> None:
    """As a run is given it, in `folder`."""
    store.snapshot(
        folder,
        data_cut=cut,
        recent_after=0,
        train_limit=100,
        replay_limit=100,
        holdout_limit=100,
        seed=1,
        run_id=run_id,
    )


def sound(store: DuckdbStore) -> bool:
    coverage = store.coverage()
    return coverage.lost == 0 and coverage.twice == 0


def break_next(monkeypatch: pytest.MonkeyPatch, step: str, *, durable: bool) -> None:
    """The next `_commit` or `_checkpoint` of the database raises, after or before DuckDB did it."""
    real = getattr(duckdb_database, step)

    def fail(cursor: Any) -> None:
        monkeypatch.setattr(duckdb_database, step, real)
        if durable:
            real(cursor)
        raise duckdb.FatalException("the disk is full, says the test")

    monkeypatch.setattr(duckdb_database, step, fail)


def flip_a_bit_of(path: Path, table: str, column: str) -> bytes:
    """In the first block that holds the column's values; returns the file as it is then."""
    with duckdb.connect(str(path)) as connection:
        ((block,),) = connection.execute(
            f"select min(block_id) from pragma_storage_info('{table}') "
            f"where column_name = '{column}' and segment_type = 'VARCHAR' and block_id >= 0"
        ).fetchall()
    content = bytearray(path.read_bytes())
    content[3 * 4096 + block * 262_144 + 1000] ^= 1  # behind three headers, blocks of 256 KiB
    path.write_bytes(content)
    return bytes(content)
