"""What analysts get: read-only files that nobody has open, each replaced whole."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from daemon.core.errors import UsageError
from daemon.runtime.files import sync_folder
from daemon.store.database_file import copy_database, folder_of_copies, need_space, quoted, sync_file
from daemon.store.duckdb_database import Cursor, DuckdbDatabase

FORMS = ("parquet", "duckdb")
_TABLES = ("examples", "dead_letters", "quarantine", "halves", "skips", "gaps", "offsets", "runs", "decisions")
_DATABASE = "store.duckdb"


def export(database: DuckdbDatabase, folder: Path, form: str) -> Sequence[Path]:
    """One state of the store: `<table>.parquet` of each table, or `store.duckdb`. Returns the files."""
    if form not in FORMS:
        raise UsageError(f"the form is one of {', '.join(FORMS)}; got {form!r}")
    if folder.absolute() == database.path.parent:
        raise UsageError(f"{folder} is where the store itself lies; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _remove_half_made(folder)
    need_space(database.path.parent, database.path.stat().st_size, "the copy, which is made beside the store first,")
    need_space(folder, database.path.stat().st_size, "the export")
    made = folder_of_copies(database.path) / f"export-{form}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        with database.cursor() as cursor:
            if form == "duckdb":
                copy_database(cursor, made / _DATABASE)
            else:
                _write_parquet(cursor, made)
        return [_publish(file, folder) for file in sorted(made.iterdir())]
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_parquet(cursor: Cursor, folder: Path) -> None:
    cursor.begin()
    try:
        for table in _TABLES:
            target = quoted(str(folder / f"{table}.parquet"))
            cursor.execute(f"copy {table} to {target} (format parquet, compression zstd)")
    finally:
        cursor.rollback()


def _publish(file: Path, folder: Path) -> Path:
    """Into another folder, perhaps on another disk, in one rename there."""
    temporary = _unfinished(folder, file.name)
    shutil.move(file, temporary)
    temporary.chmod(0o440)
    sync_file(temporary)
    target = temporary.replace(folder / file.name)
    sync_folder(folder)
    return target


def _remove_half_made(folder: Path) -> None:
    """What somebody left there who was killed: whole tables, with all texts."""
    for name in (*(f"{table}.parquet" for table in _TABLES), _DATABASE):
        _unfinished(folder, name).unlink(missing_ok=True)


def _unfinished(folder: Path, name: str) -> Path:
    return folder / f".tmp-{name}"
