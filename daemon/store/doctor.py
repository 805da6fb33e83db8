"""What is wrong with a store and what to do about it. A file that nobody has open is looked at in a copy, never itself."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from daemon.core.upkeep import Finding
from daemon.store.coverage import read_coverage
from daemon.store.database_file import folder_of_copies, log_of, need_space, remove_copies
from daemon.store.duckdb_database import SCHEMA_VERSION, SQL, Cursor
from daemon.store.file_lock import FileLock

TABLES = ("meta", "offsets", "examples", "dead_letters", "quarantine", "halves", "skips", "gaps", "runs", "decisions")
LARGE_LOG = 1 << 28  # bytes; DuckDB checkpoints at 16 MiB by itself
_ROWS_AT_ONCE = 122_880  # a row group of DuckDB

_RESTORE = (
    "Keep the file and its .wal as they are. `relearnd restore` puts the newest backup in its place and keeps this one "
    "aside; what came since then is read again from Kafka, as far as the topic still holds it."
)
_LOG_LOST = (
    "Do not delete the .wal: it holds what was committed last. Either restore a backup, or move the .wal away and start: "
    "what it held is read again from Kafka, as far as the topic still holds it."
)


def examine_file(path: Path, options: Mapping[str, Any]) -> Sequence[Finding]:
    """A store that no learner has open; raises LockedError if one has. Needs room for a copy."""
    if not path.exists():
        return [Finding("file", False, f"{path} is not there", "Start the learner to make one, or restore a backup.")]
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        remove_copies(path)
        need_space(path.parent, 2 * path.stat().st_size, "looking at a copy")
        return [*sizes(path), *_examine_copy(path, folder_of_copies(path) / "looked-at.duckdb", options)]
    finally:
        remove_copies(path)
        lock.close()


def sizes(path: Path) -> list[Finding]:
    """The file, its log, and what lies beside it."""
    size = path.stat().st_size
    log_size = log_of(path).stat().st_size if log_of(path).exists() else 0
    found = [
        Finding("file", True, f"{path}: {size:,} bytes"),
        Finding(
            "log",
            log_size < LARGE_LOG,
            f"{log_size:,} bytes not in the file yet",
            ""
            if log_size < LARGE_LOG
            else "A long query keeps DuckDB from checkpointing; end it or restart the learner.",
        ),
    ]
    if beside := kept_beside(path):
        found.append(Finding("older copies", True, f"kept beside it: {', '.join(beside)}; remove what you do not need"))
    return found


def kept_beside(path: Path) -> list[str]:
    """Names of older copies of the store: from before a restore, or of an earlier schema. People forgotten since are in them."""
    return sorted(each.name for each in path.parent.glob(f"{path.name}.*") if each not in _ours(path))


def examine(cursor: Cursor) -> list[Finding]:
    """An open store: every row of it is read."""
    (version,) = cursor.execute(SQL["schema_version"]).fetchone()
    found = [_schema(version)]
    if version != SCHEMA_VERSION:
        return found
    found += [
        _table(table, cursor.execute(f"select count(*), bit_xor(hash(t)) from {table} as t").fetchone())
        for table in TABLES
    ]
    coverage = read_coverage(cursor)
    whole = coverage.lost == coverage.twice == 0
    told = f"{coverage.offsets:,} offsets taken; {coverage.lost:,} ended nowhere, {coverage.twice:,} in two places"
    return [*found, Finding("coverage", whole, told, "" if whole else f"This must not happen: report it. {_RESTORE}")]


def _examine_copy(path: Path, copy: Path, options: Mapping[str, Any]) -> list[Finding]:
    shutil.copyfile(path, copy)
    if log_of(path).exists():
        shutil.copyfile(log_of(path), log_of(copy))
    try:
        with _opened(copy, options) as connection:
            return examine(connection)
    except duckdb.Error as error:
        return [*_without_log(path, copy, options, error)]


def _without_log(path: Path, copy: Path, options: Mapping[str, Any], error: duckdb.Error) -> Iterator[Finding]:
    """It cannot be read whole: say which part can."""
    had_log = log_of(path).exists()
    log_of(copy).unlink(missing_ok=True)
    shutil.copyfile(path, copy)
    try:
        with _opened(copy, options) as connection:
            if had_log:
                size = log_of(path).stat().st_size
                yield Finding("log", False, f"{log_of(path)}: {size:,} bytes that cannot be read: {error}", _LOG_LOST)
            yield from _readable(connection)
    except duckdb.Error as damage:
        yield Finding("file", False, f"{path} cannot be opened: {damage}", _RESTORE)


def _readable(connection: Cursor) -> Iterator[Finding]:
    for table in TABLES:
        try:
            (rows,) = connection.execute(f"select count(*) from {table}").fetchone()
        except duckdb.Error as error:
            yield Finding(table, False, f"cannot be read: {error}", _RESTORE)
            continue
        lost = [first for first in range(0, rows, _ROWS_AT_ONCE) if not _reads(connection, table, first)]
        if lost:
            readable = rows - sum(min(_ROWS_AT_ONCE, rows - first) for first in lost)
            yield Finding(table, False, f"{readable:,} of {rows:,} rows can be read", _RESTORE)
        else:
            yield Finding(table, True, f"{rows:,} rows, all readable")


def _reads(connection: Cursor, table: str, first: int) -> bool:
    try:
        connection.execute(
            f"select bit_xor(hash(t)) from {table} as t where rowid >= $first and rowid < $first + $count",
            {"first": first, "count": _ROWS_AT_ONCE},
        ).fetchall()
    except duckdb.Error:
        return False
    return True


@contextmanager
def _opened(path: Path, options: Mapping[str, Any]) -> Iterator[Cursor]:
    connection = duckdb.connect(str(path), config=dict(options))
    try:
        yield connection
    finally:
        connection.close()


def _schema(version: int) -> Finding:
    if version == SCHEMA_VERSION:
        return Finding("schema", True, f"version {version}")
    if version < SCHEMA_VERSION:
        return Finding(
            "schema", True, f"version {version}; the next start writes it as {SCHEMA_VERSION} and keeps this one"
        )
    return Finding("schema", False, f"version {version}, of a newer release", "Use the release that wrote it.")


def _table(name: str, counted: tuple[int, Any]) -> Finding:
    return Finding(name, True, f"{counted[0]:,} rows, all readable")


def _ours(path: Path) -> set[Path]:
    return {log_of(path), *(path.with_name(f"{path.name}.{each}") for each in ("lock", "copies"))}
