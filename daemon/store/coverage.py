"""Promise 1 as numbers: where every offset ended, counted anew."""

from daemon.core.stream import Coverage
from daemon.store.duckdb_database import SQL, Cursor


def read_coverage(cursor: Cursor) -> Coverage:
    """Of the database the cursor looks at; slow on a large one."""
    offsets, examples, letters, quarantined, halves, gap_offsets, skipped, covered, ids = cursor.execute(
        SQL["coverage"]
    ).fetchone()
    return Coverage(
        offsets=offsets,
        examples=examples,
        dead_letters=letters,
        gap_offsets=gap_offsets,
        lost=offsets - covered,
        twice=examples + letters + quarantined + halves + gap_offsets + skipped - covered,
        repeated_ids=examples - ids,
        quarantined=quarantined,
        skipped_offsets=skipped,
        halves=halves,
    )
