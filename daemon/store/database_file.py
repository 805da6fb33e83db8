"""A DuckDB file as a file: opened so that it reaches no other, copied out while it is in use, put in another's place.

The daemon never opens a live store by its path, for that would drop DuckDB's lock on it: copies are made by DuckDB itself.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from daemon.core.errors import StoreError
from daemon.runtime.files import sync_folder

Cursor = Any  # duckdb.DuckDBPyConnection

SPILL = 8  # times the memory limit: what one query may put on the disk; then it fails, and only it

STORE = "store"  # what DuckDB calls an open store

# A transaction that adds so many rows to a table has them compressed into the file before it is committed, and the log only says
# where they are: few are left for a checkpoint to compress while ingest stands still, and to wait for it in memory. Fewer rows go
# through the log. DuckDB holds about 45 kB of each group in memory, so they are no smaller. With blocks of another size, or where
# checkpoints may not join small groups (`max_vacuum_tasks`), a write that a kill cuts short can leave a file that nobody can read.
ROW_GROUP = 8192

_COPY = "copied"

# A checkpoint costs as much as taking the same rows in: it waits for a quiet moment, but no longer than for so many bytes of log.
# What is in the log is in memory too.
LONGEST_LOG = 256 << 20


def duckdb_options(memory_limit: int, threads: int) -> dict[str, Any]:
    """`memory_limit` in bytes. No extension but those in the package is ever loaded or fetched."""
    return {
        "threads": threads,
        "memory_limit": f"{memory_limit}B",
        "max_temp_directory_size": f"{SPILL * memory_limit}B",
        "checkpoint_threshold": f"{min(LONGEST_LOG, memory_limit // 4)}B",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
    }


def connect(path: Path, options: Mapping[str, Any]) -> Cursor:
    """No file, network or extension but the store itself and the folder for its copies, and nobody changes that later.

    Closing it writes nothing, for by then the file may be somebody else's: who closes it says `checkpoint` first. `options` name a
    `temp_directory`, for DuckDB's own choice would be the working directory: the store is attached to an instance in memory.
    """
    connection = duckdb.connect(config=dict(options))
    connection.execute(
        f"attach {quoted(str(path))} as {STORE} (row_group_size {ROW_GROUP}); use {STORE};"
        "pragma disable_checkpoint_on_shutdown;"
        f"set allowed_directories = [{quoted(f'{_folder(path)}/')}];"
        "set enable_external_access = false; set lock_configuration = true"
    )
    return connection


def folder_of_copies(path: Path) -> Path:
    """Where DuckDB may write beside the store at `path`: on the same file system, so that a rename is enough to publish."""
    folder = _folder(path)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove_copies(path: Path) -> None:
    """What was left there by somebody who was killed. Call it with the store's lock held."""
    shutil.rmtree(_folder(path), ignore_errors=True)


def remove_copy(path: Path) -> None:
    """A copy that is wanted no more, whole or not: what is left of one takes room, and stands in the next one's way."""
    path.unlink(missing_ok=True)
    log_of(path).unlink(missing_ok=True)


def copy_database(cursor: Cursor, target: Path) -> None:
    """All committed tables into a new file, without what was deleted, and durable on return."""
    with attached(cursor, target) as name:
        copy_tables(cursor, name)
    sync_file(target)


def copy_tables(cursor: Cursor, database: str) -> None:
    """All tables of the database the cursor looks at into an attached, empty one."""
    cursor.execute(f"copy from database {_name_of(cursor)} to {database}")


@contextmanager
def attached(cursor: Cursor, path: Path, *, read_only: bool = False) -> Iterator[str]:
    """Another database file under a name, for as long as the block lasts; only in the folder of copies."""
    cursor.execute(f"attach {quoted(str(path))} as {_COPY}{' (read_only)' if read_only else ''}")
    try:
        yield _COPY
        if not read_only:
            cursor.execute(f"checkpoint {_COPY}")
    finally:
        cursor.execute(f"detach {_COPY}")


@contextmanager
def looking_at(cursor: Cursor, database: str) -> Iterator[None]:
    """Within the block a table's name means that one of `database`."""
    before = _name_of(cursor)
    cursor.execute(f"use {database}")
    try:
        yield
    finally:
        cursor.execute(f"use {before}")


def put_in_place(fresh: Path, path: Path) -> None:
    """Replace the closed file at `path`, which must have no write-ahead log; one sees the old one or the new one, whole."""
    keep_private(fresh)
    sync_file(fresh)
    sync_folder(path.parent)  # the old file's log stays removed, whatever happens: it must never meet the new file
    fresh.rename(path)
    sync_folder(path.parent)
    sync_folder(
        fresh.parent
    )  # a rename between folders is durable when both are; before that no new log may be written


def keep_aside(path: Path, name: str) -> Path:
    """The file at `path` under a second name beside it, so that it outlives being replaced."""
    aside = path.with_name(name)
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, aside)
        sync_file(aside)
    keep_private(aside)
    sync_folder(path.parent)
    return aside


def keep_private(path: Path) -> None:
    """For its owner alone: everybody's texts lie in it. DuckDB itself makes its files as the umask has it."""
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def log_of(path: Path) -> Path:
    """DuckDB's write-ahead log of a database file."""
    return path.with_name(f"{path.name}.wal")


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def need_space(folder: Path, needed: int, what: str) -> None:
    """Raises StoreError when the file system of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{what} needs {needed:,} bytes in {folder}, {free:,} are free; free some or name another folder"
        )


def quoted(text: str) -> str:
    """As an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _folder(path: Path) -> Path:
    return path.absolute().with_name(f"{path.name}.copies")


def _name_of(cursor: Cursor) -> str:
    (name,) = cursor.execute("select current_database()").fetchone()
    return '"' + str(name).replace('"', '""') + '"'
