"""What only a store on disk can promise: it outlives processes, has one owner, and touches nothing but its own files."""

import errno
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from daemon.core.errors import ConfigError, LockedError, OutcomeUnknownError, StoreError
from daemon.core.states import Split
from daemon.core.stream import Advance, Batch, Example, Position, TopicPartition
from daemon.store import database_file, duckdb_database, duckdb_store
from daemon.store.database_file import ROW_GROUP
from daemon.store.duckdb_database import DuckdbDatabase
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import START
from tests.stores import break_next

ZERO = TopicPartition("examples", 0)
LARGE = ROW_GROUP + 500  # examples that go past the log


def opened(folder: Path) -> DuckdbStore:
    return DuckdbStore.open(folder / "data" / "store.duckdb", memory_limit=1 << 28, threads=1)


def batch(first: int, count: int) -> Batch:
    examples = [
        Example(Position("examples", 0, offset), str(offset), "text", "yes", START, START, "source", Split.TRAIN)
        for offset in range(first, first + count)
    ]
    return Batch(examples, [], [], {ZERO: Advance(first or None, first + count)})


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(batch(0, 10))
    counts = store.counts()
    store.put("paused", True)
    store.close()
    again = opened(tmp_path)
    assert again.counts() == counts
    assert again.next_offsets() == {ZERO: 10}
    assert again.get("paused") is True
    again.commit(batch(10, 5))
    assert [stored.seq for stored in again.window(after=9, up_to=99, limit=9)] == [10, 11, 12, 13, 14, 15]
    again.close()


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.integration.test_duckdb_store import batch, opened
store = opened(Path({str(tmp_path)!r}))
for number in range(5):
    store.commit(batch(number * 100, 100))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    store = opened(tmp_path)
    assert store.next_offsets() == {ZERO: 500}
    assert (store.coverage().examples, store.coverage().lost, store.coverage().twice) == (500, 0, 0)
    store.close()


def test_a_quiet_moment_folds_the_log_into_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.commit(batch(0, 1000))
    log = tmp_path / "data" / "store.duckdb.wal"
    written = log.stat().st_size
    store.tidy()
    assert log.stat().st_size == written, "too little to be worth a checkpoint"
    monkeypatch.setattr(duckdb_store, "QUIET_LOG", written)
    store.tidy()
    assert not log.exists() or log.stat().st_size == 0
    assert store.counts().examples == 1000
    store.commit(batch(1000, 5))
    store.close()


def test_a_large_batch_goes_past_the_log_and_survives_kill_9(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.integration.test_duckdb_store import LARGE, batch, opened
store = opened(Path({str(tmp_path)!r}))
for number in range(3):
    store.commit(batch(number * LARGE, LARGE))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "data" / "store.duckdb.wal").stat().st_size < 3 * LARGE, "less than a byte a row"
    store = opened(tmp_path)
    coverage = store.coverage()
    assert (coverage.examples, coverage.lost, coverage.twice) == (3 * LARGE, 0, 0)
    store.close()


def test_a_store_whose_row_groups_are_larger_goes_on_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier releases wrote it."""
    with monkeypatch.context() as earlier:
        earlier.setattr(database_file, "ROW_GROUP", 122_880)
        store = opened(tmp_path)
        store.commit(batch(0, 2 * LARGE))
        store.close()
    store = opened(tmp_path)
    store.commit(batch(2 * LARGE, 10))
    store.commit(batch(2 * LARGE + 10, LARGE))
    store.close()
    again = opened(tmp_path)
    coverage = again.coverage()
    assert (coverage.examples, coverage.lost, coverage.twice) == (3 * LARGE + 10, 0, 0)
    assert [one.seq for one in again.window(after=0, up_to=1 << 40, limit=1 << 40)] == [*range(1, 3 * LARGE + 11)]
    again.close()


@pytest.mark.parametrize("durable", [True, False])
def test_after_a_failed_checkpoint_the_store_goes_on_with_all_that_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    monkeypatch.setattr(duckdb_store, "QUIET_LOG", 1)
    store = opened(tmp_path)
    store.commit(batch(0, 1000))
    break_next(monkeypatch, "_checkpoint", durable=durable)
    with pytest.raises(OutcomeUnknownError, match="CHECKPOINT failed"):
        store.tidy()
    goes_on_after(store, 1000, tmp_path)


def test_a_removed_log_that_cannot_be_made_durable_is_a_failed_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_store, "QUIET_LOG", 1)
    store = opened(tmp_path)
    store.commit(batch(0, 1000))

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "says the test")

    with monkeypatch.context() as broken:
        broken.setattr(duckdb_database, "sync_folder", fail)
        with pytest.raises(OutcomeUnknownError, match="says the test"):
            store.tidy()
    goes_on_after(store, 1000, tmp_path)


def goes_on_after(store: DuckdbStore, count: int, folder: Path) -> None:
    """So many examples are there, more come in, a quiet moment folds them in, and all is there once after opening again."""
    assert (store.counts().examples, store.next_offsets()) == (count, {ZERO: count})
    store.commit(batch(count, 5))
    store.tidy()
    assert not (folder / "data" / "store.duckdb.wal").exists()
    store.close()
    again = opened(folder)
    coverage = again.coverage()
    assert (coverage.examples, coverage.lost, coverage.twice) == (count + 5, 0, 0)
    assert again.counts().last_seq == count + 5
    again.close()


def test_a_checkpoint_that_fails_on_a_disk_that_stays_broken_closes_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_store, "QUIET_LOG", 1)
    store = opened(tmp_path)
    store.commit(batch(0, 1000))
    break_next(monkeypatch, "_checkpoint", durable=False)

    def fail(*_: object) -> None:
        raise duckdb.IOException("the disk is gone, says the test")

    with monkeypatch.context() as broken:
        broken.setattr(duckdb_database, "connect", fail)
        with pytest.raises(StoreError, match="the disk is gone") as told:
            store.tidy()
    assert not isinstance(told.value, OutcomeUnknownError), "ingest would try again on a store that is closed"
    with pytest.raises(StoreError, match="restart the learner"):
        store.next_offsets()
    store.close()
    again = opened(tmp_path)
    assert again.counts().examples == 1000
    again.close()


def test_numbers_are_never_given_twice(tmp_path: Path) -> None:
    """Also where the newest example was deleted: what a run was given is kept by number."""
    store = opened(tmp_path)
    store.commit(batch(0, 3))
    with store.deletion() as cursor:
        cursor.execute("delete from examples where seq = 3")
    store.close()
    again = opened(tmp_path)
    again.commit(batch(3, 1))
    assert [stored.seq for stored in again.window(after=0, up_to=9, limit=9)] == [1, 2, 4]
    again.close()


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(LockedError, match=r"held by process \d+ on"):
        opened(tmp_path)
    store.close()
    opened(tmp_path).close()


def test_a_creation_that_was_cut_short_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / ".store.duckdb.new").write_bytes(b"half a file")
    opened(tmp_path).close()
    assert sorted(path.name for path in folder.iterdir()) == ["store.duckdb", "store.duckdb.lock"]


def test_a_log_without_its_store_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "store.duckdb.wal").write_bytes(b"of another store")
    with pytest.raises(StoreError, match="restore it"):
        opened(tmp_path)
    (folder / "store.duckdb.wal").unlink()
    opened(tmp_path).close()


def test_a_file_that_is_no_store_is_refused_and_left_unlocked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "store.duckdb").write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreError, match="the store failed"):
            opened(tmp_path)


def test_an_error_says_nothing_of_what_records_hold(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for statement in ("select 'O''Neil'::integer", "select 1 where 'O''Neil' = 7", """select "O'Neil" from meta"""):
        with pytest.raises(StoreError, match="left out") as failure, store.database.cursor() as cursor:
            cursor.execute(statement).fetchall()
        assert "Neil" not in str(failure.value)
    store.close()


def test_a_store_of_another_schema_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with duckdb.connect(str(tmp_path / "data" / "store.duckdb")) as connection:
        connection.execute("update meta set schema_version = 99")
    with pytest.raises(ConfigError, match="schema version 99"):
        opened(tmp_path)


def test_a_process_that_lost_the_store_writes_nothing_more(tmp_path: Path) -> None:
    """As on a shared disk whose locks do not hold: the other one wrote its name into the lock's file."""
    store = opened(tmp_path)
    store.commit(batch(0, 1))
    (tmp_path / "data" / "store.duckdb.lock").write_text("process 7 on elsewhere, epoch 9\n")
    with pytest.raises(LockedError, match="process 7 on elsewhere"):
        store.commit(batch(1, 1))
    assert store.next_offsets() == {ZERO: 1}
    untouched = (tmp_path / "data" / "store.duckdb").read_bytes()
    store.close()
    assert (tmp_path / "data" / "store.duckdb").read_bytes() == untouched


@pytest.mark.parametrize(
    "statement",
    [
        "copy (select 1) to '{folder}/leak.parquet' (format parquet)",
        "select * from read_csv('/etc/passwd')",
        "attach '{folder}/other.duckdb'",
        "install httpfs",
        "set enable_external_access = true",
    ],
)
def test_sql_reaches_nothing_but_the_store(tmp_path: Path, statement: str) -> None:
    database = DuckdbDatabase(tmp_path / "store.duckdb", memory_limit=1 << 28, threads=1)
    with pytest.raises(StoreError), database.cursor() as cursor:
        cursor.execute(statement.format(folder=tmp_path))
    database.close()


def test_an_old_duckdb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb_database.duckdb, "__version__", "1.4.5")
    with pytest.raises(StoreError, match=r"1\.4\.5 is too old"):
        opened(tmp_path)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.commit(batch(0, 1))
