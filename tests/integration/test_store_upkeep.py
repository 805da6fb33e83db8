"""What becomes of data on disk: earlier schemas, retention, forgetting, backups, exports, damage."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from daemon.core.errors import LockedError, NotFoundError, StoreError, UsageError
from daemon.core.states import Action, HalfKind, QuarantineReason, RejectReason, SkipReason, Split
from daemon.core.stream import (
    Advance,
    Amendment,
    Batch,
    DeadLetter,
    Example,
    Half,
    Position,
    Quarantined,
    Skip,
    TopicPartition,
)
from daemon.core.types import Decision
from daemon.core.upkeep import Retention
from daemon.store.backup import restore
from daemon.store.database_file import duckdb_options
from daemon.store.doctor import examine_file
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START

ROOT = Path(__file__).parents[2]
ZERO = TopicPartition("examples", 0)
OPTIONS = duckdb_options(1 << 28, 1)
PERSON, SENTINEL = "hash-of-the-person", "SENTINEL-OF-THE-PERSON"
FOR_EVER = Retention(keep_for=None, keep_examples=None, keep_waits=timedelta(days=10_000))


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
    """Run a script in a process of its own that dies there."""
    imports = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.integration.test_store_upkeep import *\n"
    killed = subprocess.run(
        [sys.executable, "-c", imports + script],
        env={**os.environ, "RELEARND_FAILPOINT": failpoint},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr


def snapshot(store: DuckdbStore, folder: Path, run_id: str, cut: int) -> None:
    store.snapshot(
        folder / run_id,
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


# --- what a run was given -----------------------------------------------------------------------------------------


def test_the_store_keeps_in_mind_which_examples_a_run_was_given(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(10)))
    snapshot(store, tmp_path, "run-1", cut=7)
    keeper = DuckdbKeeper(store)
    data = keeper.run_data("run-1")
    assert data is not None
    assert data.seqs == {"train.parquet": [(1, 7)]}
    assert (data.rows, data.expired_at, data.erased_at) == ({"train.parquet": 7}, None, None)
    assert len(data.sha256) == 64
    assert keeper.run_data("run-2") is None
    store.close()


# --- retention ----------------------------------------------------------------------------------------------------


def test_the_oldest_go_and_their_offsets_stay_covered_in_one_range(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset, at=START + timedelta(hours=offset)) for offset in range(10)))
    commit(store, *(example(offset, at=START + timedelta(hours=offset)) for offset in range(10, 20)))
    snapshot(store, tmp_path, "old", cut=5)
    keeper = DuckdbKeeper(store)
    now = START + timedelta(hours=20)
    first = keeper.expire(replace(FOR_EVER, keep_for=timedelta(hours=17)), now)
    assert (first.examples, first.runs) == (3, ["old"])
    second = keeper.expire(replace(FOR_EVER, keep_examples=12), now)
    assert (second.examples, second.runs) == (5, []), "a run is named when its data stops being whole"
    assert keeper.expire(replace(FOR_EVER, keep_examples=12), now).examples == 0
    assert store.counts().skipped_offsets == 8
    assert store.counts().examples == 12
    assert [one.seq for one in store.window(after=0, up_to=99, limit=99)] == list(range(9, 21))
    assert sound(store)
    data = keeper.run_data("old")
    assert data is not None and data.expired_at == now
    with store.database.cursor() as cursor:
        assert cursor.execute("select start, stop, reason from skips").fetchall() == [(0, 8, "expired")]
        assert cursor.execute("select count(*) from retention_log").fetchone() == (2,)
    store.close()


def test_replay_is_drawn_from_what_retention_has_left(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(60_000)))
    keeper = DuckdbKeeper(store)
    while keeper.expire(replace(FOR_EVER, keep_examples=6000), START).examples:
        pass
    manifest = store.snapshot(
        tmp_path / "run",
        data_cut=60_000,
        recent_after=59_000,
        train_limit=500,
        replay_limit=500,
        holdout_limit=500,
        seed=1,
        run_id="run",
    )
    assert manifest.rows["replay.parquet"] == 500
    store.close()


def test_seqs_are_not_given_twice_after_everything_expired(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(4)))
    DuckdbKeeper(store).expire(replace(FOR_EVER, keep_for=timedelta(days=1)), START + timedelta(days=2))
    assert store.counts().examples == 0
    store.close()
    store = opened(tmp_path)
    commit(store, example(4))
    assert store.counts().last_seq == 5
    assert sound(store)
    store.close()


def test_an_old_example_that_was_released_late_takes_no_newer_ones_with_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset, at=START + timedelta(days=9)) for offset in range(4)))
    commit(store, example(4, at=START))
    assert (
        DuckdbKeeper(store).expire(replace(FOR_EVER, keep_for=timedelta(days=5)), START + timedelta(days=10)).examples
        == 0
    )
    store.close()


def test_dead_letters_quarantine_and_halves_expire_by_age(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(
        Batch(
            [],
            [letter(0, b"x"), letter(1, b"y", START + timedelta(days=9))],
            [],
            {ZERO: Advance(None, 4)},
            quarantined=[Quarantined(example(2), QuarantineReason.NEW_SOURCE, "")],
            halves=[half(3)],
        )
    )
    expired = DuckdbKeeper(store).expire(replace(FOR_EVER, keep_for=timedelta(days=5)), START + timedelta(days=10))
    assert (expired.dead_letters, expired.quarantined, expired.halves) == (1, 1, 1)
    counts = store.counts()
    assert (counts.dead_letters, counts.quarantined, counts.halves, counts.skipped_offsets) == (1, 0, 0, 3)
    assert sound(store)
    store.close()


def half(offset: int, subject: str | None = None, id_: str = "h", text: str | None = None) -> Half:
    position = Position("examples", 0, offset)
    return Half(position, HalfKind.PREDICTION, id_, text, None, "yes", 1, START, START, "source", subject)


def test_old_decisions_to_wait_go_and_all_others_stay(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for action in (Action.WAIT, Action.PROMOTE, Action.WAIT, Action.WAIT):
        store.record(Decision(START, action, ["reason"], "hash"))
    expired = DuckdbKeeper(store).expire(replace(FOR_EVER, keep_waits=timedelta(days=1)), START + timedelta(days=2))
    assert expired.waits == 2
    assert [(one.number, one.decision.action) for one in store.decisions(9)] == [(4, "wait"), (2, "promote")]
    assert store.record(Decision(START, Action.WAIT, ["reason"], "hash")) == 5
    store.close()


# --- forgetting ---------------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_of_a_forgotten_person_is_left_in_the_file_and_no_replay_brings_them_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(
        Batch(
            [example(0), example(1, subject=PERSON, text=SENTINEL), example(2, subject=PERSON, text=SENTINEL)],
            [letter(3, b'{"person": "' + SENTINEL.encode() + b'"'), letter(4, b"somebody else")],
            [],
            {ZERO: Advance(None, 8)},
            quarantined=[Quarantined(example(5, subject=PERSON, text=SENTINEL), QuarantineReason.NEW_SOURCE, SENTINEL)],
            halves=[half(6, PERSON, text=SENTINEL), half(7, None)],
        )
    )
    snapshot(store, tmp_path / "runs", "run-1", cut=3)
    keeper = DuckdbKeeper(store)
    with store.database.transaction() as cursor:
        cursor.execute("select 1")
    erasure = keeper.forget(PERSON, lambda one: SENTINEL.encode() in (one.value or b""), START)
    assert (erasure.examples, erasure.dead_letters, erasure.quarantined, erasure.halves) == (2, 1, 1, 2)
    assert erasure.runs == ["run-1"]
    assert [one.number for one in keeper.unfinished_erasures()] == [1]
    store.close()

    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    assert [one.number for one in keeper.unfinished_erasures()] == [1], "killed before the rewrite, it is still to do"
    keeper.finish_erasure(1, START)
    assert keeper.unfinished_erasures() == []
    commit(store, example(8, subject=PERSON, text=SENTINEL), example(9))
    assert [one.id for one in store.window(after=0, up_to=99, limit=99)] == ["id-0", "id-9"]
    assert store.counts().dead_letters == 1
    assert sound(store)
    data = keeper.run_data("run-1")
    assert data is not None and data.erased_at == START
    with store.database.cursor() as cursor:
        skips = cursor.execute("select start, stop, reason from skips order by start").fetchall()
    assert skips == [(1, 4, "erased"), (5, 8, "erased"), (8, 9, "erased")]
    store.close()
    assert SENTINEL.encode() not in bytes_of(tmp_path / "data")


def test_an_erasure_killed_before_the_new_file_is_in_place_is_finished_later(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, example(0), example(1, subject=PERSON, text=SENTINEL))
    store.close()
    assert SENTINEL.encode() in bytes_of(tmp_path / "data")
    killed_at(
        "before_rewritten_store",
        f"""
keeper = DuckdbKeeper(opened(Path({str(tmp_path)!r})))
keeper.finish_erasure(keeper.forget({PERSON!r}, lambda one: False, START).number, START)
""",
    )
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    assert store.counts().examples == 1
    for erasure in keeper.unfinished_erasures():
        keeper.finish_erasure(erasure.number, START)
    commit(store, example(2))
    assert sound(store)
    store.close()
    assert SENTINEL.encode() not in bytes_of(tmp_path / "data")


def test_reading_goes_on_while_the_file_is_rewritten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(100)))
    before = path_in(tmp_path).stat().st_ino
    store.database.rewrite()
    assert path_in(tmp_path).stat().st_ino != before
    assert store.counts().examples == store.examples_after(0) == 100
    commit(store, example(100))
    assert sound(store)
    with pytest.raises(LockedError):
        opened(tmp_path)
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_expires_is_dropped_or_forgotten_every_offset_still_ends_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    reached, now = 0, START
    for _ in range(20):
        now += timedelta(hours=1)
        deed = chance.choice(["read", "read", "read", "expire by age", "expire by count", "forget", "drop", "rewrite"])
        if deed == "read":
            kinds = [chance.choice(["example", "letter", "aside", "half"]) for _ in range(chance.randint(1, 9))]
            store.commit(mixed(kinds, reached, now, chance))
            reached += len(kinds)
        elif deed == "expire by age":
            keeper.expire(replace(FOR_EVER, keep_for=timedelta(hours=chance.randint(2, 20))), now)
        elif deed == "expire by count":
            keeper.expire(replace(FOR_EVER, keep_examples=chance.randint(1, 20)), now)
        elif deed == "forget":
            keeper.forget(f"person-{chance.randint(0, 9)}", lambda letter: letter.position.offset % 7 == 0, now)
        elif deed == "drop":
            gone = [letter.position for letter in store.dead_letters(chance.randint(1, 3))]
            store.amend(
                Amendment(
                    gone,
                    skips=[Skip(at.topic, at.partition, at.offset, at.offset + 1, SkipReason.DROPPED) for at in gone],
                )
            )
        else:
            store.database.rewrite()
        assert sound(store), deed
        kept, counts = store.coverage(), store.counts()
        assert (kept.examples, kept.skipped_offsets) == (counts.examples, counts.skipped_offsets), deed
    store.close()


def mixed(kinds: list[str], first: int, at: datetime, chance: random.Random) -> Batch:
    found: dict[str, list[Any]] = {"example": [], "letter": [], "aside": [], "half": []}
    for offset, kind in enumerate(kinds, first):
        subject = f"person-{chance.randint(0, 9)}"
        one = example(offset, at=at, subject=subject)
        found[kind].append(
            {
                "example": one,
                "letter": letter(offset, b"x", at),
                "aside": Quarantined(one, QuarantineReason.QUALITY, ""),
                "half": replace(half(offset, subject, id_=one.id), ingested_at=at),
            }[kind]
        )
    advance = {ZERO: Advance(first or None, first + len(kinds))}
    return Batch(found["example"], found["letter"], [], advance, quarantined=found["aside"], halves=found["half"])


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
