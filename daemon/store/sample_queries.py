"""The samples that a training run sees, read from ranges of seq."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from daemon.core.states import Split
from daemon.core.stream import StoreCounts
from daemon.store.duckdb_database import SQL, Cursor
from daemon.store.sampling import Range, drawn_ranges, newest_ranges
from daemon.store.snapshot import SCHEMA


def read_sample(
    cursor: Cursor, name: str, data_cut: int, recent_after: int, limit: int, seed: int, counts: StoreCounts
) -> pa.Table:
    """What `Store.snapshot` says of NAME.parquet."""
    past = min(recent_after, data_cut)
    split = {"validation": Split.VALIDATION, "holdout": Split.HOLDOUT}.get(name, Split.TRAIN)
    share = share_of(counts, split)
    newest: dict[str, tuple[int, int]] = {
        "train": (recent_after, data_cut),
        "validation": (0, data_cut),
        "holdout": (recent_after, data_cut),
    }
    parts = []
    if name in ("replay", "holdout"):
        ((first,),) = cursor.execute(SQL["first_seq"]).fetchall()
        drawn = _in_ranges(cursor, split, drawn_ranges(past, limit, share, seed, first=first))
        parts.append(_chosen(cursor, f"draw_{name}", drawn, {"seed": str(seed), "limit": limit}))
    if name in newest:
        parts.append(_newest(cursor, split, *newest[name], limit, share))
    table = pa.concat_tables(parts).sort_by("seq")
    return _with_recent(table, recent_after)


def share_of(counts: StoreCounts, split: Split | None) -> float:
    """Of all examples; 1 where every split counts."""
    return counts.by_split.get(split, 0) / max(1, counts.examples) if split else 1.0


def _newest(cursor: Cursor, split: Split, after: int, up_to: int, limit: int, share: float) -> pa.Table:
    found = _between(cursor, split, 0, 0)
    for first, last in newest_ranges(after, max(after, up_to), limit, share):
        found = _between(cursor, split, first, last)
        if found.num_rows >= limit:
            break
    return found.slice(max(0, found.num_rows - limit))


def _in_ranges(cursor: Cursor, split: Split, ranges: Sequence[Range]) -> pa.Table:
    """In any order. Several ranges are asked for by their seqs: DuckDB reads the row groups that hold some of them, where
    bounds joined by `or` would make it read them all."""
    if len(ranges) <= 1:
        return _between(cursor, split, *(ranges[0] if ranges else (0, 0)))
    bounds = {"firsts": [after + 1 for after, _ in ranges], "lasts": [up_to for _, up_to in ranges]}
    return cursor.sql(SQL["examples_in_ranges"], params={"split": split, **bounds}).to_arrow_table()


def _between(cursor: Cursor, split: Split, after: int, up_to: int) -> pa.Table:
    """In seq order."""
    return cursor.sql(SQL["examples_between"], params={"after": after, "up_to": up_to, "split": split}).to_arrow_table()


def _chosen(cursor: Cursor, name: str, candidates: pa.Table, values: dict[str, Any]) -> pa.Table:
    cursor.register("candidates", candidates.select(["seq", "id", "label"]))
    try:
        chosen = cursor.sql(SQL[name], params=values).to_arrow_table()
        return candidates.filter(pc.is_in(candidates["seq"], value_set=chosen["seq"].combine_chunks()))
    finally:
        cursor.unregister("candidates")


def _with_recent(table: pa.Table, recent_after: int) -> pa.Table:
    return table.append_column("recent", pc.greater(table["seq"], recent_after)).select(SCHEMA.names)
