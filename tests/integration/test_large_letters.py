"""Dead letters that are together larger than DuckDB's memory: listed, copied, redriven, dropped and searched all the same."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest

from daemon.core.states import RejectReason
from daemon.core.stream import Advance, Batch, DeadLetter, Position
from daemon.core.upkeep import Chosen
from daemon.ingest.cut_letters import KEPT, cut, is_cut
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.store.letters import PAGE_BYTES
from daemon.testing.clock import START
from tests.stores import ZERO

COUNT, MEMORY = 2300, 128 << 20
SENTINEL = b"SENTINEL-OF-THE-PERSON"


def letter(offset: int, value: bytes, at: datetime = START) -> DeadLetter:
    return DeadLetter(Position("examples", 0, offset), RejectReason.TOO_BIG, "the record is large", None, value, at)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckdbStore]:
    """2,300 letters of large records, as ingest leaves them, in a store with 128 MiB of memory."""
    opened = DuckdbStore.open(tmp_path / "store.duckdb", memory_limit=MEMORY, threads=1)
    for first in range(0, COUNT, 100):
        letters = [letter(offset, os.urandom(KEPT - len(SENTINEL)) + SENTINEL) for offset in range(first, first + 100)]
        opened.commit(Batch([], letters, [], {ZERO: Advance(first or None, first + 100)}))
    opened.database.checkpoint(at_least=0)
    yield opened
    opened.close()


def pages(read: Callable[[int], list[tuple[int, DeadLetter]]]) -> Iterator[list[tuple[int, DeadLetter]]]:
    after = 0
    while page := read(after):
        yield page
        after = page[-1][0]


def test_more_large_letters_than_memory_are_listed_read_and_erased(store: DuckdbStore) -> None:
    keeper = DuckdbKeeper(store)
    assert [each.position.offset for each in store.listed_letters(1000)] == [*range(COUNT - 1, COUNT - 1001, -1)]
    assert store.listed_letters(9, reason="not_json") == []
    for read in (
        lambda after: list(store.letters_after(after, 1000)),
        lambda after: list(keeper.find_dead_letters(Chosen(reason="too_big"), after=after, limit=1000)),
    ):
        sizes, offsets = [], []
        for page in pages(read):
            sizes.append(sum(len(each.value or b"") for _, each in page))
            offsets += [each.position.offset for _, each in page]
        assert offsets == [*range(COUNT)]
        assert max(sizes) < PAGE_BYTES + KEPT
    erasure = keeper.forget("a hash", lambda each: (each.value or b"").endswith(SENTINEL), START)
    assert erasure.dead_letters == COUNT
    assert store.counts().dead_letters == 0


def test_a_letter_that_was_taken_out_between_others_is_not_read(store: DuckdbStore) -> None:
    keeper = DuckdbKeeper(store)
    ((number, found),) = keeper.find_dead_letters(Chosen(Position("examples", 0, 1500)), after=0, limit=9)
    assert (number, found.position.offset) == (1501, 1500)
    assert keeper.find_dead_letters(Chosen(reason="not_json"), after=0, limit=9) == []


def test_a_large_record_keeps_its_beginning_its_size_and_its_hash() -> None:
    record = os.urandom(20_000_000)
    small, large = cut([letter(0, b"not JSON"), letter(1, record)])
    assert small == letter(0, b"not JSON")
    assert large.value == record[:KEPT]
    assert large.detail.startswith("the record is large; the first 65536 of its value's 20000000 bytes are kept")
    assert large.detail.endswith(sha256(record).hexdigest())
    assert (is_cut(small), is_cut(large)) == (False, True)
