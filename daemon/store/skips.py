"""Records taken out, their offsets still covered: ranges of one reason that touch become one, so that they stay few."""

from daemon.core.states import SkipReason
from daemon.store.duckdb_database import SQL, Cursor

TABLES = ("examples", "dead_letters", "quarantine", "halves")


def cover_gone(cursor: Cursor, reason: SkipReason) -> None:
    """Give the positions in the temporary table `gone`, whose rows were deleted, this reason."""
    (last,) = cursor.execute(SQL["last_skip"]).fetchone()
    cursor.execute(SQL["skip_gone"], {"reason": reason})
    cursor.execute(SQL["delete_merged_skips"], {"reason": reason, "up_to": last})
