"""What the store makes of examples that come as columns: the same as of a list of them."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.core.states import Split
from daemon.core.stream import Advance, Batch, Example, Position, TopicPartition
from daemon.runtime.arrow_examples import ExampleColumns
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import START

PARTITION = TopicPartition("mails", 2)
EXAMPLE = Example(
    position=Position("mails", 2, 5),
    id="1",
    text="naïve 🤖",
    label="spam",
    occurred_at=START,
    ingested_at=START,
    source="shop",
    split=Split.HOLDOUT,
    subject="someone",
)
OTHER = replace(
    EXAMPLE, id="2", position=Position("mails", 2, 6), split=Split.TRAIN, label="ham", subject=None,
    occurred_at=START + timedelta(days=1),
)  # fmt: skip
EXAMPLES = [EXAMPLE, OTHER]


@pytest.mark.parametrize("erased", [set(), {"someone"}])
def test_columns_are_stored_as_a_list_is(tmp_path: Path, erased: set[str]) -> None:
    found = []
    for name, examples in (("list", EXAMPLES), ("columns", ExampleColumns.of(EXAMPLES))):
        store = DuckdbStore.open(tmp_path / name, memory_limit=1 << 28, threads=1)
        store.erased = erased
        store.commit(Batch(examples, [], [], {PARTITION: Advance(None, 7)}))
        counts, coverage = store.counts(), store.coverage()
        found.append((store.window(after=0, up_to=9, limit=9), counts, coverage, store.next_offsets()))
        store.close()
    assert found[0] == found[1]
    _, counts, coverage, _ = found[0]
    assert (counts.examples, counts.skipped_offsets) == ((1, 1) if erased else (2, 0))
    assert (coverage.offsets, coverage.lost, coverage.twice) == (2, 0, 0)
