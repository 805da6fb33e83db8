"""The store's file and its copies: earlier schemas, backups, exports, damage."""

import os
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow.parquet as pq
import pytest

from daemon.core.errors import LockedError, NotFoundError, RelearndError, StoreError, UsageError
from daemon.store.backup import restore
from daemon.store.database_file import keep_aside
from daemon.store.doctor import examine_file
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START
from tests.stores import (
    OPTIONS,
    PERSON,
    ROOT,
    SENTINEL,
    ZERO,
    commit,
    example,
    flip_a_bit_of,
    killed_at,
    opened,
    path_in,
    snapshot,
    sound,
)

# --- earlier schemas ----------------------------------------------------------------------------------------------


def store_of_schema_1(folder: Path) -> None:
    path_in(folder).parent.mkdir()
    with duckdb.connect(str(path_in(folder))) as connection:
        connection.execute((ROOT / "tests" / "fixtures" / "store_schema_1.sql").read_text())
        connection.execute("insert into meta values (1, 'the-store', 7)")
        connection.execute("insert into offsets values ('examples', 0, 0, 6)")
        for seq in (1, 2, 3):
            connection.execute(
                "insert into examples values (?, 'examples', 0, ?, ?, 'text', 'yes', 'source', 'train', ?, ?)",
                [seq, seq - 1, f"id-{seq}", datetime(2026, 1, 1), datetime(2026, 1, 2)],
            )
        connection.execute(
            "insert into dead_letters values ('examples', 0, 3, 'not_json', 'detail', null, 'x'::blob, ?)",
            [datetime(2026, 1, 2)],
        )
        connection.execute("insert into gaps values ('examples', 0, 4, 6, 'retention')")
        connection.execute("insert into facts values ('paused', 'true')")


def test_a_store_of_schema_1_is_written_in_todays_tables_and_kept_aside(tmp_path: Path) -> None:
    store_of_schema_1(tmp_path)
    store = opened(tmp_path)
    counts, coverage = store.counts(), store.coverage()
    assert (counts.examples, counts.dead_letters, counts.last_seq) == (3, 1, 3)
    assert (coverage.offsets, coverage.gap_offsets, coverage.lost, coverage.twice) == (6, 2, 0, 0)
    assert store.get("paused") is True
    assert [one.id for one in store.window(after=0, up_to=9, limit=9)] == ["id-1", "id-2", "id-3"]
    commit(store, example(6))
    assert store.counts().last_seq == 4
    store.close()
    with duckdb.connect(str(path_in(tmp_path).with_name("store.duckdb.schema-1"))) as aside:
        assert aside.execute("select schema_version from meta").fetchall() == [(1,)]
    opened(tmp_path).close()


def test_a_migration_killed_before_the_rename_is_done_again(tmp_path: Path) -> None:
    store_of_schema_1(tmp_path)
    before = path_in(tmp_path).read_bytes()
    killed_at("before_migrated_store", f"opened(Path({str(tmp_path)!r}))")
    assert len(before) == len(path_in(tmp_path).read_bytes())
    with duckdb.connect(str(path_in(tmp_path))) as untouched:
        assert untouched.execute("select schema_version from meta").fetchall() == [(1,)]
    store = opened(tmp_path)
    assert store.counts().examples == 3
    assert sound(store)
    store.close()
    assert not path_in(tmp_path).with_name("store.duckdb.copies").exists() or not any(
        path_in(tmp_path).with_name("store.duckdb.copies").iterdir()
    )


def test_a_store_of_schema_2_keeps_every_row_and_learns_whom_its_runs_were_given(tmp_path: Path) -> None:
    path_in(tmp_path).parent.mkdir()
    with duckdb.connect(str(path_in(tmp_path))) as connection:
        connection.execute((ROOT / "tests" / "fixtures" / "store_schema_2.sql").read_text())
        at = datetime(2026, 1, 2)
        connection.execute("insert into meta values (2, 'the-store', 7, 5, 1)")
        connection.execute("insert into offsets values ('examples', 0, 0, 7, 6, 5, 'key', 'value', -1)")
        for seq, subject in ((1, PERSON), (2, None)):
            connection.execute(
                "insert into examples values (?, 'examples', 0, ?, 'id', 'text', 'yes', 'source', 'train', ?, ?, ?)",
                [seq, seq - 1, at, at, subject],
            )
        connection.execute(
            "insert into dead_letters values (1, 'examples', 0, 2, 'not_json', '', null, 'x'::blob, ?)", [at]
        )
        row = "'examples', 0, 3, 'id', 'text', 'yes', 'source', 'train', $1, $1, null"
        connection.execute(f"insert into quarantine values ({row}, 'quality', '')", [at])
        half = "'examples', 0, 4, 'label', 'id', null, 'yes', null, null, 'source', $1, $1, null"
        connection.execute(f"insert into halves values ({half})", [at])
        connection.execute("insert into skips values ('examples', 0, 5, 6, 'erased')")
        connection.execute("insert into gaps values ('examples', 0, 6, 7, 'retention')")
        connection.execute("insert into run_data values ('run-1', 'digest', null, null)")
        connection.execute("insert into run_rows values ('run-1', 'train.parquet', 1), ('run-1', 'train.parquet', 2)")
        body = '{"counts": {"examples": 1, "dead_letters": 0, "quarantine": 0, "halves": 0}, "runs": ["run-0"]}'
        connection.execute("insert into erasures values (1, 'forgotten before', $1, $1, $2)", [at, body])
    store = opened(tmp_path)
    counts = store.counts()
    assert (counts.examples, counts.dead_letters, counts.quarantined, counts.halves) == (2, 1, 1, 1)
    assert (counts.last_seq, store.tails()[ZERO].offset, sound(store)) == (5, 6, True)
    keeper = DuckdbKeeper(store)
    data = keeper.run_data("run-1")
    assert data is not None and data.seqs == {"train.parquet": [(1, 2)]}
    assert keeper.forget(PERSON, lambda _: False, START).runs == ["run-1"]
    assert keeper.forget("forgotten before", lambda _: False, START).runs == ["run-0"]
    store.close()


# --- whose the files are ------------------------------------------------------------------------------------------


def test_the_store_and_its_log_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = opened(tmp_path)
        for offset in range(2):
            commit(store, example(offset))
            modes = {path.name: oct(path.stat().st_mode & 0o777) for path in path_in(tmp_path).parent.iterdir()}
            names = ("store.duckdb", "store.duckdb.wal", "store.duckdb.lock")
            assert {name: modes[name] for name in names} == dict.fromkeys(names, "0o600")
            store.database.rewrite()
        with store.database.cursor() as cursor:
            ((spilled,),) = cursor.execute("select current_setting('temp_directory')").fetchall()
        assert Path(spilled).parent.stat().st_mode & 0o077 == 0, "what a large query puts on the disk holds texts too"
        snapshot(store, tmp_path / "runs" / "run-1" / "data", "run-1", cut=1)
        assert (tmp_path / "runs" / "run-1" / "data").stat().st_mode & 0o077 == 0, "and what a run is given"
        store.close()
        path_in(tmp_path).chmod(0o644)
        opened(tmp_path).close()
    finally:
        os.umask(before)
    assert path_in(tmp_path).stat().st_mode & 0o777 == 0o600, "also what an earlier release has made"


@pytest.mark.parametrize("links", [True, False])
def test_what_is_kept_aside_is_for_its_owner_alone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    store = tmp_path / "store.duckdb"
    store.write_bytes(SENTINEL.encode())
    store.chmod(0o644)

    def refuse(*_: object) -> None:
        raise OSError("this file system has no links")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    assert keep_aside(store, "aside").stat().st_mode & 0o777 == 0o600


def test_a_killed_query_leaves_no_texts_behind(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.database.cursor() as cursor:
        ((spilled,),) = cursor.execute("select current_setting('temp_directory')").fetchall()
    store.close()
    Path(spilled).mkdir(parents=True)
    (Path(spilled) / "duckdb_temp_1_0_storage_DEFAULT-0.tmp").write_text(SENTINEL)
    path_in(tmp_path).with_name("store.duckdb.tmp").mkdir()  # where an earlier release had them
    store = opened(tmp_path)
    assert not Path(spilled).exists()
    assert DuckdbKeeper(store).kept_beside() == ["store.duckdb.tmp"]
    store.close()


# --- backups and exports ------------------------------------------------------------------------------------------


def test_a_backup_is_proved_equal_and_brings_the_store_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(10)))
    backup = DuckdbKeeper(store).back_up(tmp_path / "backups", START)
    assert (backup.tables["examples"], backup.coverage.offsets) == (10, 10)
    commit(store, *(example(offset) for offset in range(10, 15)))
    with pytest.raises(LockedError):
        restore(Path(backup.folder), path_in(tmp_path), OPTIONS, START)
    store.close()

    restored = restore(Path(backup.folder), path_in(tmp_path), OPTIONS, START)
    assert restored.kept is not None and restored.kept.exists()
    store = opened(tmp_path)
    assert (store.counts().examples, store.next_offsets()) == (10, {ZERO: 10})
    commit(store, example(10))
    assert store.counts().last_seq == 16, "what was given to others after the backup is not given again"
    assert sound(store)
    store.close()


def test_a_person_forgotten_after_the_backup_stays_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, example(0), example(1, subject=PERSON, text=SENTINEL))
    keeper = DuckdbKeeper(store)
    backup = keeper.back_up(tmp_path / "backups", START)
    keeper.forget(PERSON, lambda _: False, START)
    keeper.finish_erasure(1, START)
    store.close()

    assert restore(Path(backup.folder), path_in(tmp_path), OPTIONS, START).forgotten_again == 1
    assert SENTINEL.encode() not in path_in(tmp_path).read_bytes()
    store = opened(tmp_path)
    assert store.counts().examples == 1
    commit(store, example(2, subject=PERSON))
    assert store.counts().examples == 1
    assert sound(store)
    store.close()


def test_a_damaged_backup_changes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(10)))
    folder = Path(DuckdbKeeper(store).back_up(tmp_path / "backups", START).folder)
    store.close()
    copy = folder / "store.duckdb"
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(StoreError, match="sha256"):
        restore(folder, path_in(tmp_path), OPTIONS, START)
    with pytest.raises(NotFoundError):
        restore(tmp_path, path_in(tmp_path), OPTIONS, START)
    store = opened(tmp_path)
    assert store.counts().examples == 10
    store.close()


def test_analysts_get_read_only_files_that_are_replaced_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    for first in (0, 10):
        commit(store, *(example(offset) for offset in range(first, first + 10)))
        files = keeper.export(tmp_path / "out", "parquet") + keeper.export(tmp_path / "out", "duckdb")
    assert pq.read_table(tmp_path / "out" / "examples.parquet").num_rows == 20
    with duckdb.connect(str(tmp_path / "out" / "store.duckdb"), read_only=True) as copy:
        assert copy.execute("select count(*) from examples").fetchall() == [(20,)]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o440}
    with pytest.raises(UsageError, match="csv"):
        keeper.export(tmp_path / "out", "csv")
    with pytest.raises(UsageError, match="store itself"):
        keeper.export(tmp_path / "data", "parquet")
    store.close()


def test_the_next_copy_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, example(0))
    half_made = tmp_path / "out" / f".tmp-{store.identity()}"
    others = tmp_path / "out" / ".tmp-of-another-store"
    for folder in (half_made, others):
        folder.mkdir(parents=True)
        (folder / "store.duckdb").write_bytes(b"texts")
    for name in (".tmp-examples.parquet", ".tmp-store.duckdb"):
        (tmp_path / "out" / name).write_bytes(b"texts")
    keeper = DuckdbKeeper(store)
    keeper.back_up(tmp_path / "out", START)
    keeper.export(tmp_path / "out", "parquet")
    assert [path.name for path in (tmp_path / "out").glob(".tmp-*")] == [others.name]
    store.close()


@pytest.mark.parametrize("folder", ["data", "out"])
def test_a_copy_is_refused_where_there_is_no_room_for_it_or_for_making_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    store = opened(tmp_path)
    real = shutil.disk_usage

    def usage(path: Path) -> object:
        return SimpleNamespace(free=0) if Path(path).name == folder else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    keeper = DuckdbKeeper(store)
    with pytest.raises(StoreError, match=f"{folder}, 0 are free"):
        keeper.back_up(tmp_path / "out", START)
    with pytest.raises(StoreError, match=f"{folder}, 0 are free"):
        keeper.export(tmp_path / "out", "parquet")
    store.close()


# --- damage -------------------------------------------------------------------------------------------------------


def test_a_healthy_store_is_found_healthy_and_is_not_touched(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(10)))
    assert all(finding.ok for finding in DuckdbKeeper(store).examine())
    with pytest.raises(LockedError):
        examine_file(path_in(tmp_path), OPTIONS)
    store.close()
    before = path_in(tmp_path).read_bytes()
    findings = examine_file(path_in(tmp_path), OPTIONS)
    assert all(finding.ok for finding in findings), findings
    assert {"schema", "examples", "coverage"} <= {finding.what for finding in findings}
    assert path_in(tmp_path).read_bytes() == before
    assert sorted(path.name for path in path_in(tmp_path).parent.iterdir()) == ["store.duckdb", "store.duckdb.lock"]


def test_a_flipped_bit_is_found_and_what_can_be_read_is_told(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset, text=f"{SENTINEL} {offset}") for offset in range(2000)))
    store.close()
    content = flip_a_bit_of(path_in(tmp_path), "examples", "text")
    findings = {finding.what: finding for finding in examine_file(path_in(tmp_path), OPTIONS)}
    assert not findings["examples"].ok
    assert "0 of 2,000 rows can be read" in findings["examples"].detail
    assert "relearnd restore" in findings["examples"].what_to_do
    assert findings["offsets"].ok
    assert path_in(tmp_path).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_file_that_cannot_be_opened_is_told_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path_in(tmp_path).parent.mkdir()
    path_in(tmp_path).write_bytes(content)
    broken = [finding for finding in examine_file(path_in(tmp_path), OPTIONS) if not finding.ok]
    assert broken and all(finding.what_to_do for finding in broken)
    assert path_in(tmp_path).read_bytes() == content


def test_what_only_looks_leaves_nothing_where_no_store_is(tmp_path: Path) -> None:
    path = tmp_path / "data" / "store.duckdb"
    assert [finding.ok for finding in examine_file(path, OPTIONS)] == [False]
    with pytest.raises(RelearndError):
        restore(tmp_path / "nope", path, OPTIONS, START)
    assert list(tmp_path.iterdir()) == []
