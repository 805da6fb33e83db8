"""Retention: the oldest out, in passes that are short enough for a quiet moment."""

from datetime import datetime

from daemon.core.states import SkipReason
from daemon.core.upkeep import Expired, Retention
from daemon.runtime.records import encode
from daemon.store.duckdb_database import SQL, Cursor
from daemon.store.skips import cover_gone
from daemon.store.stream_rows import naive

MOST_ROWS = 200_000  # of each table in one pass
MOST_RUNS = 10  # whose details go in one pass


def expire(cursor: Cursor, retention: Retention, at: datetime, examples: int) -> Expired:
    """One pass, with a row in the log if it took anything out. `examples`: how many there are."""
    before = naive(at - retention.keep_for) if retention.keep_for is not None else datetime.min
    up_to = _last_to_expire(cursor, retention.keep_examples, before, naive(at), examples)
    runs = [run_id for (run_id,) in cursor.execute(SQL["runs_with_rows_up_to"], {"up_to": up_to}).fetchall()]
    cursor.execute(SQL["mark_expired"], {"run_ids": runs, "at": naive(at)})
    cursor.execute(SQL["gone_examples"], {"up_to": up_to})
    taken = {
        "examples": _changed(cursor, "delete_examples_up_to", up_to=up_to),
        "dead_letters": _gone(cursor, "dead_letters", before),
        "quarantined": _gone(cursor, "quarantine", before),
        "halves": _gone(cursor, "halves", before),
    }
    if any(taken.values()):
        cover_gone(cursor, SkipReason.EXPIRED)
    taken["waits"] = _changed(cursor, "delete_waits", before=naive(at - retention.keep_waits), limit=MOST_ROWS)
    _forget_details(cursor, naive(at - retention.keep_details))
    expired = Expired(**taken, runs=runs, more=max(taken.values()) >= MOST_ROWS)
    if any(taken.values()):
        cursor.execute(SQL["log_retention"], {"at": naive(at), "body": encode(expired).decode()})
    return expired


def _last_to_expire(cursor: Cursor, keep: int | None, before: datetime, at: datetime, examples: int) -> int:
    """The greatest seq to take out. An old example that was released late goes with its neighbours, not before them.

    So does one from a time that is still to come, which a wrong clock has given it: it keeps no older ones back.
    """
    too_many = 0 if keep is None else max(0, examples - keep)
    by_count = _value(cursor, "oldest_examples", count=min(too_many, MOST_ROWS)) if too_many else 0
    return max(by_count, _value(cursor, "last_older", before=before, at=at, limit=MOST_ROWS))


def _forget_details(cursor: Cursor, before: datetime) -> None:
    """Row by row, what runs were given; whose examples they were stays. The rows lie in the order of their runs."""
    cursor.execute(SQL["trim_retention_log"], {"before": before})
    for _ in range(MOST_RUNS):
        first = cursor.execute(SQL["first_run_with_rows"]).fetchone()
        if first is None or (first[1] is not None and first[1] >= before):
            return
        cursor.execute(SQL["forget_run_rows"], {"run_id": first[0]})


def _gone(cursor: Cursor, table: str, before: datetime) -> int:
    cursor.execute(SQL[f"gone_{table}"], {"before": before, "limit": MOST_ROWS})
    return _changed(cursor, f"delete_gone_{table}")


def _changed(cursor: Cursor, statement: str, **values: object) -> int:
    """How many rows a statement took out."""
    return _value(cursor, statement, **values)


def _value(cursor: Cursor, statement: str, **values: object) -> int:
    (value,) = cursor.execute(SQL[statement], values).fetchone()
    return int(value)
