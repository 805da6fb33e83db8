"""Copies of a store for safe keeping: taken while it is in use, proved equal, put back while it is not."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from daemon.core.errors import ConfigError, NotFoundError, StoreError, UsageError
from daemon.core.stream import Coverage
from daemon.core.upkeep import Backup
from daemon.runtime.files import sync_folder, write_durably
from daemon.runtime.records import decode, encode
from daemon.store.coverage import read_coverage
from daemon.store.database_file import (
    attached,
    copy_database,
    copy_tables,
    folder_of_copies,
    keep_aside,
    log_of,
    looking_at,
    need_space,
    put_in_place,
    remove_copies,
    remove_copy,
    sync_file,
)
from daemon.store.duckdb_database import SCHEMA_VERSION, SQL, Cursor, DuckdbDatabase, mapped_duckdb_errors
from daemon.store.erasure import erase
from daemon.store.file_lock import FileLock
from daemon.store.stream_rows import naive

COPY, MANIFEST = "store.duckdb", "MANIFEST.json"
_TABLES = ("examples", "dead_letters", "quarantine", "halves", "runs", "decisions")


def back_up(database: DuckdbDatabase, folder: Path, at: datetime) -> Backup:
    """A new folder inside `folder`: a copy and its manifest. The copy is read back and compared before it counts."""
    target = folder / f"relearnd-{at:%Y%m%d-%H%M%S}"
    if target.exists():
        raise UsageError(f"{target} is there already; wait a second, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(database, folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    need_space(database.path.parent, database.path.stat().st_size, "the copy, which is made beside the store first,")
    need_space(folder, database.path.stat().st_size, "the backup")
    copy = folder_of_copies(database.path) / f"backup-{at:%Y%m%d-%H%M%S}.duckdb"
    try:
        with database.cursor() as cursor:
            figures = _copied(cursor, copy)
        return _publish(copy, unfinished, target, at, figures)
    finally:
        remove_copy(copy)


def read_backup(folder: Path) -> Backup:
    """The manifest of a backup whose file is as it says. Raises NotFoundError or StoreError."""
    try:
        backup = decode((folder / MANIFEST).read_bytes(), Backup)
    except FileNotFoundError:
        raise NotFoundError(f"{folder} is no backup: there is no {MANIFEST} in it") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise StoreError(f"{folder / MANIFEST} cannot be read: {error}") from error
    found = _digest(folder / COPY)
    if found != backup.sha256:
        raise StoreError(f"{folder / COPY} is damaged: its sha256 is {found}, the manifest says {backup.sha256}")
    return backup


@dataclass(frozen=True, slots=True)
class Restored:
    """`kept`: where the store that was there lies now. `forgotten_again`: people forgotten since the backup was made."""

    backup: Backup
    kept: Path | None
    forgotten_again: int
    old_store_unread: str  # why the old store could not be asked whom it has forgotten; empty if it could


def restore(folder: Path, path: Path, options: Mapping[str, Any], at: datetime) -> Restored:
    """Put a backup in the place of the store at `path`, which nobody may have open. Raises LockedError if somebody has.

    People forgotten since are blocked again, and no seq is given twice, as far as the old store can still be read.
    """
    backup = read_backup(folder)
    if backup.schema_version != SCHEMA_VERSION:
        raise ConfigError(
            f"{folder} has schema version {backup.schema_version}, this release restores {SCHEMA_VERSION}; "
            "use the release that made it"
        )
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        remove_copies(path)
        need_space(path.parent, backup.size, "the restored store")
        fresh = folder_of_copies(path) / "restored.duckdb"
        shutil.copyfile(folder / COPY, fresh)
        with mapped_duckdb_errors():
            forgotten, unread = _prepare(fresh, path, backup, options, at)
            if forgotten:
                _written_anew(fresh, options)
        kept = _set_aside(path, at)
        put_in_place(fresh, path)
        remove_copies(path)
        return Restored(backup, kept, forgotten, unread)
    finally:
        lock.close()


@dataclass(frozen=True, slots=True)
class _Figures:
    store_id: str
    schema_version: int
    tables: Mapping[str, int]
    coverage: Coverage


def _figures(cursor: Cursor) -> _Figures:
    (store_id, version) = cursor.execute(SQL["identity"]).fetchone()
    counts = cursor.execute(SQL["table_counts"]).fetchone()
    return _Figures(store_id, version, dict(zip(_TABLES, counts, strict=True)), read_coverage(cursor))


def _copied(cursor: Cursor, copy: Path) -> _Figures:
    """Copy what is committed now and count it, both in one transaction; then count the copy."""
    with attached(cursor, copy) as name:
        cursor.begin()
        copy_tables(cursor, name)
        figures = _figures(cursor)
        cursor.commit()
        with looking_at(cursor, name):
            found = _figures(cursor)
    if found != figures:
        raise StoreError(f"the copy is not equal to the store: it has {found}, the store {figures}; nothing was kept")
    return figures


def _unfinished(database: DuckdbDatabase, folder: Path) -> Path:
    """Where this store's backups are put together; what lies there is of one that was killed: a copy with all texts."""
    with database.cursor() as cursor:
        (store_id, _) = cursor.execute(SQL["identity"]).fetchone()
    return folder / f".tmp-{store_id}"


def _publish(copy: Path, temporary: Path, target: Path, at: datetime, figures: _Figures) -> Backup:
    temporary.mkdir(mode=0o700)
    shutil.move(copy, temporary / COPY)
    sync_file(temporary / COPY)
    backup = Backup(
        folder=str(target),
        created_at=at,
        sha256=_digest(temporary / COPY),
        size=(temporary / COPY).stat().st_size,
        store_id=figures.store_id,
        schema_version=figures.schema_version,
        tables=figures.tables,
        coverage=figures.coverage,
    )
    write_durably(temporary / MANIFEST, encode(backup))
    sync_folder(temporary)
    temporary.rename(target)
    sync_folder(target.parent)
    return backup


def _prepare(fresh: Path, old: Path, backup: Backup, options: Mapping[str, Any], at: datetime) -> tuple[int, str]:
    """Check the copy by its content, and tell it what the old store knows and must not be forgotten."""
    known, unread = _known_of(old, options)
    connection = duckdb.connect(str(fresh), config=dict(options))
    try:
        figures = _figures(connection)
        if (figures.coverage, figures.tables) != (backup.coverage, backup.tables):
            raise StoreError(f"{backup.folder} does not hold what its manifest says; nothing was changed")
        if known is None:
            return 0, unread
        forgotten = known.forgotten - _subjects(connection)
        connection.begin()
        connection.execute(SQL["last_seq_at_least"], {"last_seq": known.last_seq, "last_letter": known.last_letter})
        for subject in sorted(forgotten):
            again = erase(connection, subject, lambda _: False, at)
            connection.execute(SQL["finish_erasure"], {"number": again.number, "at": naive(at)})
        connection.commit()
        connection.execute("checkpoint")
        return len(forgotten), ""
    finally:
        connection.close()


def _written_anew(path: Path, options: Mapping[str, Any]) -> None:
    """Without the bytes of what was deleted from it."""
    again = path.with_name("again.duckdb")
    connection = duckdb.connect(str(path), config=dict(options))
    try:
        copy_database(connection, again)
    finally:
        connection.close()
    again.rename(path)


@dataclass(frozen=True, slots=True)
class _Known:
    last_seq: int
    last_letter: int
    forgotten: set[str]


def _known_of(old: Path, options: Mapping[str, Any]) -> tuple[_Known | None, str]:
    """What the store that is replaced knows, checkpointing it; and why not, when it cannot be read."""
    if not old.exists():
        return None, ""
    try:
        connection = duckdb.connect(str(old), config=dict(options))
    except duckdb.Error as error:
        return None, str(error)
    try:
        connection.execute("checkpoint")
        last_seq, last_letter = connection.execute(SQL["last_numbers"]).fetchone()
        return _Known(last_seq, last_letter, _subjects(connection)), ""
    except duckdb.Error as error:
        return None, str(error)
    finally:
        connection.close()


def _subjects(cursor: Cursor) -> set[str]:
    return {subject for (subject,) in cursor.execute(SQL["erased_subjects"]).fetchall()}


def _set_aside(path: Path, at: datetime) -> Path | None:
    """Keep the old store and its log under other names. The log first: it must not be replayed into another file."""
    name = f"{path.name}.before-restore-{at:%Y%m%d-%H%M%S}"
    if log_of(path).exists():
        log_of(path).rename(path.with_name(f"{name}.wal"))
        sync_folder(path.parent)
    return keep_aside(path, name) if path.exists() else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
