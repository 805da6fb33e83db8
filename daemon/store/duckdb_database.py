"""One DuckDB instance of our own: created so that a crash cannot spoil it, locked, and reopened when a COMMIT raised.

An exception from COMMIT does not mean "rolled back": DuckDB may have made the transaction durable and failed afterwards, and
refuses everything until it is opened again. So it is opened again, and the caller re-reads what became of the transaction.
"""

import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import structlog

from daemon.core.errors import OutcomeUnknownError, StoreError
from daemon.runtime.files import sync_folder
from daemon.store.file_lock import FileLock
from daemon.store.named_sql import read_queries, read_schema

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1
# Before 1.5.5 a full disk at a checkpoint could lose committed rows; the appender that takes rows came with 2.0.
OLDEST_DUCKDB = (2, 0, 0)

SQL = read_queries()

Cursor = Any  # duckdb.DuckDBPyConnection


@contextmanager
def mapped_duckdb_errors() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise StoreError(f"the store failed: {error}") from error


class DuckdbDatabase:
    """Cursors to read with and transactions to write with, from any thread; transactions come one after the other."""

    def __init__(self, path: Path, *, memory_limit: int, threads: int) -> None:
        """Opened, created first where it is not there. `memory_limit` in bytes."""
        _refuse_old_duckdb()
        self._path = path.absolute()
        self._options = _options(memory_limit, threads)
        self._writing = threading.Lock()
        self._idle = threading.Condition()
        self._cursors = 0
        self._connection: Cursor | None = None
        self._epoch = 0
        self._lock = FileLock(self._path.with_name(f"{self._path.name}.lock"))
        try:
            if not self._path.exists():
                _create(self._path, self._options)
            self._open()
        except BaseException:
            self._lock.close()
            raise

    @contextmanager
    def cursor(self) -> Iterator[Cursor]:
        """A cursor of one's own, on what was committed last."""
        with self._idle:
            if self._connection is None:
                raise StoreError(f"{self._path} is closed, or could not be opened again; restart the learner")
            cursor = self._connection.cursor()
            self._cursors += 1
        try:
            with mapped_duckdb_errors():
                yield cursor
        finally:
            with suppress(duckdb.Error):
                cursor.close()
            with self._idle:
                self._cursors -= 1
                self._idle.notify_all()

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Committed when the block ends, rolled back when it raises. Raises OutcomeUnknownError when COMMIT does."""
        with self._writing:
            with self.cursor() as cursor:
                cursor.begin()
                try:
                    self._check_epoch(cursor)
                    yield cursor
                except BaseException:
                    with suppress(duckdb.Error):
                        cursor.rollback()
                    raise
                failure = _commit_failure(cursor)
            if failure is not None:
                self._reopen(failure)
                raise OutcomeUnknownError(
                    f"{self._path}: COMMIT failed, its outcome is re-read: {failure}"
                ) from failure

    def close(self) -> None:
        with self._writing:
            self._close()
            self._lock.close()

    def _open(self) -> None:
        """Raises StoreError, with nothing left open."""
        with mapped_duckdb_errors():
            connection = duckdb.connect(str(self._path), config=self._options)
            try:
                (version,) = connection.execute(SQL["schema_version"]).fetchone()
                if version != SCHEMA_VERSION:
                    raise StoreError(
                        f"{self._path} has schema version {version}, this release reads {SCHEMA_VERSION}; "
                        "use the release that wrote it"
                    )
                (self._epoch,) = connection.execute(SQL["next_epoch"]).fetchone()
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def _close(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._cursors == 0)
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(duckdb.Error):
                connection.close()

    def _reopen(self, failure: Exception) -> None:
        log.error(f"COMMIT failed; the store is opened again: {failure}", action="store_reopened")
        self._close()
        self._open()

    def _check_epoch(self, cursor: Cursor) -> None:
        """Somebody else opened the file since: a copy of the lock file, or another machine on a shared disk."""
        (epoch,) = cursor.execute(SQL["epoch"]).fetchone()
        if epoch != self._epoch:
            raise StoreError(
                f"{self._path} was opened by another process (epoch {epoch}, ours is {self._epoch}); stop one"
            )


def _commit(cursor: Cursor) -> None:
    cursor.commit()


def _commit_failure(cursor: Cursor) -> Exception | None:
    try:
        _commit(cursor)
    except Exception as error:
        return error
    return None


def _options(memory_limit: int, threads: int) -> dict[str, Any]:
    """No file, network or extension but the store itself, and nobody changes that later."""
    return {
        "threads": threads,
        "memory_limit": f"{memory_limit}B",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "enable_external_access": False,
        "lock_configuration": True,
    }


def _create(path: Path, options: dict[str, Any]) -> None:
    """Complete or not there at all: DuckDB cannot open a file whose creation was cut short."""
    log_of_lost_file = path.with_name(f"{path.name}.wal")
    if log_of_lost_file.exists():
        raise StoreError(f"{log_of_lost_file} is there but {path} is not; restore it, or move the .wal file away")
    temporary = path.with_name(f".{path.name}.new")
    for left_over in (temporary, temporary.with_name(f"{temporary.name}.wal")):
        left_over.unlink(missing_ok=True)
    with mapped_duckdb_errors():
        connection = duckdb.connect(str(temporary), config=options)
        connection.execute(read_schema())
        connection.execute(SQL["new_store"], {"schema_version": SCHEMA_VERSION, "store_id": uuid.uuid4().hex})
        connection.execute("checkpoint")
        connection.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def _refuse_old_duckdb() -> None:
    version = tuple(int(number) for number in re.findall(r"\d+", duckdb.__version__)[:3])
    if version < OLDEST_DUCKDB:
        oldest = ".".join(map(str, OLDEST_DUCKDB))
        raise StoreError(f"DuckDB {duckdb.__version__} is too old for a store; install duckdb>={oldest}")
