"""A store that runs out of memory or of file descriptors says so, stays as it was and goes on."""

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.core.errors import StoreError
from daemon.store.duckdb_store import DuckdbStore
from tests.stores import commit, example, path_in, snapshot, sound

SMALL = 48 << 20  # bytes of memory for DuckDB


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
