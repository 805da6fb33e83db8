"""Which examples a run was given, and of whom: what a version came from is a query, not a guess."""

from collections.abc import Mapping
from typing import Any

from daemon.core.types import DataManifest
from daemon.core.upkeep import RunData, SeqRanges
from daemon.store.duckdb_database import SQL, Cursor
from daemon.store.stream_rows import aware


def remember_run_data(cursor: Cursor, run_id: str, manifest: DataManifest, tables: Mapping[str, Any]) -> None:
    """`tables`: Arrow tables with a column seq, by the name of their file."""
    for statement in ("forget_run_data", "forget_run_rows", "forget_run_people"):
        cursor.execute(SQL[statement], {"run_id": run_id})
    cursor.execute(SQL["insert_run_data"], {"run_id": run_id, "sha256": manifest.sha256})
    for name, table in tables.items():
        cursor.register("given_rows", table.select(["seq"]))
        try:
            cursor.execute(SQL["insert_run_rows"], {"run_id": run_id, "file": name})
        finally:
            cursor.unregister("given_rows")
    cursor.execute(SQL["insert_run_people"], {"run_id": run_id})


def read_run_data(cursor: Cursor, run_id: str) -> RunData | None:
    found = cursor.execute(SQL["run_data"], {"run_id": run_id}).fetchone()
    if found is None:
        return None
    sha256, expired_at, erased_at = found
    seqs = dict(cursor.execute(SQL["run_rows"], {"run_id": run_id}).fetchall())
    return RunData(
        run_id=run_id,
        sha256=sha256,
        rows={name: len(numbers) for name, numbers in seqs.items()},
        seqs={name: ranges(numbers) for name, numbers in seqs.items()},
        expired_at=expired_at and aware(expired_at),
        erased_at=erased_at and aware(erased_at),
    )


def ranges(numbers: list[int]) -> SeqRanges:
    """Numbers in order, as first and last of each run without a hole."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
