"""The Parquet files of a run: their columns, how they are written, and the manifest over them."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from daemon.core.types import DataManifest

SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("occurred_at", pa.timestamp("us", tz="UTC")),
        ("recent", pa.bool_()),
    ]
)
TRAINED_ON = ("train.parquet", "replay.parquet")


def write_snapshot(folder: Path, tables: Mapping[str, pa.Table], *, data_cut: int) -> DataManifest:
    """Tables by file name. Equal tables give equal bytes, so equal snapshots have equal digests. Texts lie in `folder`, so it is
    made for its owner alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    digests = {}
    for name, table in tables.items():
        pq.write_table(table.cast(SCHEMA), folder / name, compression="zstd")
        digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return DataManifest(
        files=digests,
        rows={name: table.num_rows for name, table in tables.items()},
        sha256=hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest(),
        data_cut=data_cut,
        newest_occurred_at=_newest([tables[name] for name in TRAINED_ON]),
    )


def _newest(tables: list[pa.Table]) -> datetime | None:
    times = [pc.max(table.cast(SCHEMA)["occurred_at"]).as_py() for table in tables if table.num_rows]
    return max((time.astimezone(UTC) for time in times), default=None)
