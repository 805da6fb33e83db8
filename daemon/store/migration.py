"""A store of an earlier release, written anew in today's tables and put in the old one's place in one rename.

Killed at any moment, either file is there whole and the next start goes on. The old file stays beside it, under another name.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import structlog

from daemon.core.errors import StoreError
from daemon.runtime.failpoints import failpoint
from daemon.store.database_file import attached, folder_of_copies, keep_aside, log_of, need_space, put_in_place
from daemon.store.named_sql import read_schema

log = structlog.get_logger(__name__)


def migrate(path: Path, version: int, options: Mapping[str, Any]) -> Path:
    """`path`: a closed and checkpointed store with schema `version`. Returns where the old file is kept."""
    if log_of(path).exists():
        raise StoreError(f"{path} could not be checkpointed; free space and start again")
    need_space(path.parent, path.stat().st_size, f"writing {path.name} in today's tables")
    fresh = folder_of_copies(path) / "migrated.duckdb"
    _write(fresh, path, version, options)
    failpoint("before_migrated_store")
    aside = keep_aside(path, f"{path.name}.schema-{version}")
    put_in_place(fresh, path)
    log.warning(
        f"{path} was written in the tables of this release; the old file is {aside}: remove it when all is well",
        action="store_migrated",
        version=version,
    )
    return aside


def _write(fresh: Path, old: Path, version: int, options: Mapping[str, Any]) -> None:
    fresh.unlink(missing_ok=True)
    connection = duckdb.connect(str(fresh), config=dict(options))
    try:
        connection.execute(read_schema())
        with attached(connection, old, read_only=True):
            connection.begin()
            connection.execute((files(__package__) / f"from_schema_{version}.sql").read_text())
            connection.commit()
        connection.execute("checkpoint")
    finally:
        connection.close()
