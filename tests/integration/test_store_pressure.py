"""A store that runs out of memory or of file descriptors says so, stays as it was and goes on."""

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.core.errors import OutOfMemoryError, StoreError
from daemon.store import erasure
from daemon.store.database_file import ROW_GROUP
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START
from tests.stores import PERSON, commit, example, path_in, snapshot, sound

SMALL = 48 << 20  # bytes of memory for DuckDB
EVERYWHERE = 300  # row groups: to take a row out of each at once costs DuckDB 75 MiB


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    held = []
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_snapshot_without_enough_memory_fails_and_the_store_goes_on(tmp_path: Path) -> None:
    rng = random.Random(1)
    store = DuckdbStore.open(path_in(tmp_path), memory_limit=SMALL, threads=1)
    for start in range(0, 5000, 500):
        commit(store, *(example(offset, text=rng.randbytes(5000).hex()) for offset in range(start, start + 500)))
    with pytest.raises(StoreError, match="Out of Memory"):
        snapshot(store, tmp_path / "run", "run-1", cut=5000)
    commit(store, example(5000))
    assert store.counts().examples == 5001
    assert sound(store)
    store.close()


def test_a_store_without_descriptors_fails_in_the_systems_words_and_goes_on_when_there_are_some_again(
    tmp_path: Path,
) -> None:
    store = DuckdbStore.open(path_in(tmp_path), memory_limit=SMALL, threads=1)
    commit(store, example(0))
    with no_more_files(), pytest.raises(StoreError, match="Too many open files"):
        commit(store, example(1))
    commit(store, example(1))
    assert store.counts().examples == 2
    assert sound(store)
    store.close()


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[DuckdbStore]:
    """With one example of a person in each of its row groups."""
    store = DuckdbStore.open(path_in(tmp_path), memory_limit=SMALL, threads=1)
    commit(store, example(0))
    rows = EVERYWHERE * ROW_GROUP
    with store.database.transaction() as cursor:
        cursor.execute(
            "insert into examples select n + 1, topic, part, n, 'id-' || n, text, label, source, split, occurred_at, ingested_at,"
            "case when n % $group = 5 then $person end from range(1, $rows) numbers(n), examples",
            {"group": ROW_GROUP, "person": PERSON, "rows": rows},
        )
        cursor.execute("update offsets set next = $rows", {"rows": rows})
        cursor.execute("update meta set last_seq = $rows", {"rows": rows})
    store.close()
    store = DuckdbStore.open(path_in(tmp_path), memory_limit=SMALL, threads=1)
    yield store
    store.close()


def test_a_person_who_is_everywhere_is_forgotten_a_part_at_a_time(
    wide: DuckdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "MOST_TOUCHED", 64)
    forgotten = DuckdbKeeper(wide).forget(PERSON, lambda _: False, START)
    assert forgotten.examples == EVERYWHERE
    assert wide.counts().examples == EVERYWHERE * (ROW_GROUP - 1)
    assert wide.counts().skipped_offsets == EVERYWHERE
    assert sound(wide)


def test_what_costs_too_much_memory_changes_nothing_and_costs_none_later(
    wide: DuckdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "MOST_TOUCHED", 10 * EVERYWHERE)
    with pytest.raises(OutOfMemoryError, match=r"raise store\.memory_limit"):
        DuckdbKeeper(wide).forget(PERSON, lambda _: False, START)
    assert wide.counts().examples == EVERYWHERE * ROW_GROUP
    assert sound(wide)
