"""The Keeper port on the store that is open."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from daemon.core.stream import DeadLetter, Quarantined
from daemon.core.upkeep import Backup, Chosen, Erasure, Expired, Finding, Retention, RunData
from daemon.store import backup, doctor, erasure, export, retention
from daemon.store.duckdb_database import SQL
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.letters import read_page
from daemon.store.run_data import read_run_data
from daemon.store.stream_rows import aware, naive, quarantined

log = structlog.get_logger(__name__)


class DuckdbKeeper:
    """See `daemon.core.upkeep.Keeper`."""

    def __init__(self, store: DuckdbStore) -> None:
        self._store = store
        self._database = store.database
        self._at_work: set[object] = set()

    def holds_up_writers(self) -> bool:
        """Whether something is going on that a commit may have to wait for: on a large store for minutes."""
        return bool(self._at_work)

    def find_dead_letters(self, chosen: Chosen, *, after: int, limit: int) -> Sequence[tuple[int, DeadLetter]]:
        values = {**_place(chosen), "reason": chosen.reason, "after": after, "limit": limit}
        with self._database.cursor() as cursor:
            return read_page(cursor, "find_dead_letters", **values)

    def find_quarantined(self, chosen: Chosen, limit: int) -> Sequence[Quarantined]:
        values = {
            **_place(chosen),
            "reason": chosen.reason,
            "source": chosen.source,
            "label": chosen.label,
            "limit": limit,
        }
        with self._database.cursor() as cursor:
            return [quarantined(row) for row in cursor.execute(SQL["find_quarantined"], values).fetchall()]

    def run_data(self, run_id: str) -> RunData | None:
        with self._database.cursor() as cursor:
            return read_run_data(cursor, run_id)

    def newest_ingested(self, at: datetime) -> datetime | None:
        return self._newest("newest_ingested", at)

    def newest_sent(self, at: datetime) -> datetime | None:
        return self._newest("newest_sent", at)

    def expire(self, kept: Retention, at: datetime) -> Expired:
        with self._holding_up(), self._store.deletion() as cursor:
            return retention.expire(cursor, kept, at, self._store.counts().examples)

    def forget(self, subject: str, holds: Callable[[DeadLetter], bool], at: datetime) -> Erasure:
        with self._holding_up():
            before = Counter[str]()
            while self._is_everywhere(subject):
                with self._store.deletion() as cursor:
                    before += erasure.erase_some(cursor, subject)
            with self._store.deletion() as cursor:
                return erasure.erase(cursor, subject, holds, at, before=before)

    def unfinished_erasures(self) -> Sequence[Erasure]:
        with self._database.cursor() as cursor:
            return [each for each in erasure.read_erasures(cursor) if each.finished_at is None]

    def finish_erasure(self, number: int, at: datetime) -> None:
        with self._holding_up():
            self._database.rewrite()
        with self._database.transaction() as cursor:
            cursor.execute(SQL["finish_erasure"], {"number": number, "at": naive(at)})

    def kept_beside(self) -> Sequence[str]:
        return doctor.kept_beside(self._database.path)

    def back_up(self, folder: Path, at: datetime) -> Backup:
        return backup.back_up(self._database, folder, at)

    def export(self, folder: Path, form: str) -> Sequence[Path]:
        return export.export(self._database, folder, form)

    def examine(self) -> Sequence[Finding]:
        with self._database.cursor() as cursor:
            found = doctor.examine(cursor)
        unfinished = len(self.unfinished_erasures())
        told = Finding(
            "erasures", not unfinished, f"{unfinished} unfinished", "Restart the learner." if unfinished else ""
        )
        return [*doctor.sizes(self._database.path), *found, told]

    def _is_everywhere(self, subject: str) -> bool:
        with self._database.cursor() as cursor:
            return erasure.is_everywhere(cursor, subject)

    @contextmanager
    def _holding_up(self) -> Iterator[None]:
        work = object()
        self._at_work.add(work)
        try:
            yield
        finally:
            self._at_work.remove(work)

    def _newest(self, query: str, at: datetime) -> datetime | None:
        with self._database.cursor() as cursor:
            (newest,) = cursor.execute(SQL[query], {"at": naive(at)}).fetchone()
        return newest and aware(newest)


def _place(chosen: Chosen) -> Mapping[str, Any]:
    position = chosen.position
    if position is None:
        return {"topic": None, "part": None, "off": None}
    return {"topic": position.topic, "part": position.partition, "off": position.offset}
