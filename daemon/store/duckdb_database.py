"""One DuckDB instance of our own: created so that a crash cannot spoil it, locked, and reopened when a COMMIT raised.

An exception from COMMIT does not mean "rolled back": DuckDB may have made the transaction durable and failed afterwards, and
refuses everything until it is opened again. So it is opened again, and the caller re-reads what became of the transaction.
"""

import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import structlog

from daemon.core.errors import ConfigError, LockedError, OutcomeUnknownError, OutOfMemoryError, StoreError
from daemon.runtime.disk import size_of
from daemon.runtime.failpoints import failpoint
from daemon.runtime.files import sync_folder
from daemon.store.database_file import (
    STORE,
    connect,
    copy_database,
    duckdb_options,
    folder_of_copies,
    keep_private,
    log_of,
    need_space,
    put_in_place,
    remove_copies,
    remove_copy,
)
from daemon.store.file_lock import FileLock
from daemon.store.migration import migrate
from daemon.store.named_sql import read_queries, read_schema

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 3
# Before 1.5.5 a full disk at a checkpoint could lose committed rows; the appender that takes rows came with 2.0.
OLDEST_DUCKDB = (2, 0, 0)

SQL = read_queries("queries.sql", "life.sql")

Cursor = Any  # duckdb.DuckDBPyConnection

_QUOTED = re.compile(r"""'.*'|"(?!/).*\"""")  # from the first quotation mark to the last: a value may hold some


@contextmanager
def mapped_duckdb_errors() -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise OutOfMemoryError(f"the store failed: {without_values(error)}; raise store.memory_limit") from error
    except duckdb.Error as error:
        raise StoreError(f"the store failed: {without_values(error)}") from error


def without_values(error: Exception) -> str:
    """What DuckDB says, without what it quotes: that may be of somebody's record. Paths stay."""
    first, _, _ = str(error).partition("\n")
    return _QUOTED.sub("(left out)", first)


class DuckdbDatabase:
    """Cursors to read with and transactions to write with, from any thread; transactions come one after the other.

    Raises LockedError, and writes nothing more, once somebody else has opened the store in spite of our lock.
    """

    def __init__(self, path: Path, *, memory_limit: int, threads: int) -> None:
        """Opened, created first where it is not there. `memory_limit` in bytes."""
        _refuse_old_duckdb()
        self._path = path.absolute()
        self._writing = threading.Lock()
        self._idle = threading.Condition()
        self._cursors = 0
        self._swapping = False  # the file is being replaced or opened again: cursors wait
        self._connection: Cursor | None = None
        self._lock = FileLock(self._path.with_name(f"{self._path.name}.lock"))
        try:
            remove_copies(self._path)
            spilled = str(folder_of_copies(self._path) / "spilled")  # private, and gone after a kill
            self._options = {**duckdb_options(memory_limit, threads), "temp_directory": spilled}
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
            self._idle.wait_for(lambda: not self._swapping)
            if self._connection is None:
                raise StoreError(f"{self._path} is closed, or could not be opened again; restart the learner")
            cursor = self._connection.cursor()
            self._cursors += 1
        try:
            with mapped_duckdb_errors():
                cursor.execute(f"use {STORE}")
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
        with self._writing, self._opened_again_for_memory():
            with self.cursor() as cursor:
                cursor.begin()
                try:
                    self._lock.check()
                    yield cursor
                    self._lock.check()
                except BaseException:
                    with suppress(duckdb.Error):
                        cursor.rollback()
                    raise
                failure = _failure_of(_commit, cursor) or _failure_of(self._see_to_the_log)
            if failure is not None:
                self._reopen(failure)
                raise OutcomeUnknownError(
                    f"{self._path}: COMMIT failed, its outcome is re-read: {without_values(failure)}"
                ) from failure

    def checkpoint(self, *, at_least: int) -> None:
        """Fold the write-ahead log into the file if it has so many bytes. Raises OutcomeUnknownError, as a COMMIT does."""
        if size_of(log_of(self._path)) < at_least:
            return
        with self._writing:
            self._lock.check()
            try:
                with self.cursor() as cursor:
                    _checkpoint(cursor)
                self._see_to_the_log()
            except (StoreError, OSError) as error:
                self._reopen(error)
                raise OutcomeUnknownError(
                    f"{self._path}: CHECKPOINT failed, the store was opened again: {without_values(error)}"
                ) from error

    @property
    def path(self) -> Path:
        return self._path

    def rewrite(self) -> None:
        """Put a file in place that holds what can be read now and nothing else: DELETE alone leaves the bytes there.

        Whoever reads waits for the moment of the swap, whoever writes for all of it.
        """
        need_space(self._path.parent, self._path.stat().st_size, "rewriting the store")
        fresh = folder_of_copies(self._path) / "rewritten.duckdb"
        with self._writing:
            self._lock.check()
            try:
                with self.cursor() as cursor:
                    copy_database(cursor, fresh)
                failpoint("before_rewritten_store")
                with self._swapped():
                    if log_of(self._path).exists():
                        raise StoreError(
                            f"{self._path} could not be checkpointed; it is as it was: free space and try again"
                        )
                    put_in_place(fresh, self._path)
            finally:
                remove_copy(fresh)

    def close(self) -> None:
        with self._writing:
            self._close()
            with suppress(OSError):  # somebody's copy is still in it
                folder_of_copies(self._path).rmdir()
            self._lock.close()

    def _open(self) -> None:
        """Raises StoreError, and ConfigError for a file of a newer release, with nothing left open."""
        self._lock.check()
        with mapped_duckdb_errors():
            connection = connect(self._path, self._options)
            try:
                if (version := self._version(connection)) < SCHEMA_VERSION:
                    connection.execute("checkpoint")
                    connection.close()
                    migrate(self._path, version, self._options)
                    connection = connect(self._path, self._options)
                (epoch,) = connection.execute(SQL["next_epoch"]).fetchone()
                self._lock.claim(epoch)
                keep_private(self._path)
                self._see_to_the_log()
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def _version(self, connection: Cursor) -> int:
        (version,) = connection.execute(SQL["schema_version"]).fetchone()
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self._path} has schema version {version}, this release reads up to {SCHEMA_VERSION}; "
                "use the release that wrote it, or restore a backup that is older"
            )
        return int(version)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Closed within the block and open again after it; cursors wait."""
        with self._idle:
            self._swapping = True
        try:
            self._close()
            try:
                yield
            finally:
                self._open()
        finally:
            with self._idle:
                self._swapping = False
                self._idle.notify_all()

    def _close(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._cursors == 0)
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(duckdb.Error, LockedError, StoreError):
                self._lock.check()
                if log_of(self._path).exists():  # a second checkpoint in a row would not know a log that came back
                    connection.execute("checkpoint")
            with suppress(duckdb.Error):
                connection.close()

    @contextmanager
    def _opened_again_for_memory(self) -> Iterator[None]:
        """DuckDB keeps the memory that rows cost which were taken out and rolled back, for as long as it is open."""
        try:
            yield
        except OutOfMemoryError as error:
            self._reopen(error)
            raise

    def _see_to_the_log(self) -> None:
        """Private when it is new, and durably gone when a checkpoint has folded it in: DuckDB does not sync the folder.

        After a power loss it knows a log that came back from before the last checkpoint; one from before the last but one it
        would refuse, and the file with it.
        """
        try:
            keep_private(log_of(self._path))
        except FileNotFoundError:
            sync_folder(self._path.parent)

    def _reopen(self, failure: Exception) -> None:
        log.error(f"the store failed and is opened again: {without_values(failure)}", action="store_reopened")
        with self._swapped():
            pass


def _commit(cursor: Cursor) -> None:
    cursor.commit()


def _checkpoint(cursor: Cursor) -> None:
    cursor.execute("checkpoint")


def _failure_of(action: Callable[..., None], *arguments: Any) -> Exception | None:
    try:
        action(*arguments)
    except Exception as error:
        return error
    return None


def _create(path: Path, options: dict[str, Any]) -> None:
    """Complete or not there at all: DuckDB cannot open a file whose creation was cut short."""
    log_of_lost_file = path.with_name(f"{path.name}.wal")
    if log_of_lost_file.exists():
        raise StoreError(f"{log_of_lost_file} is there but {path} is not; restore it, or move the .wal file away")
    temporary = path.with_name(f".{path.name}.new")
    for left_over in (temporary, temporary.with_name(f"{temporary.name}.wal")):
        left_over.unlink(missing_ok=True)
    with mapped_duckdb_errors():
        connection = connect(temporary, options)
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
