"""The faults run quietly here and without waits; what they change is put back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from daemon.core.errors import UnavailableError
from daemon.ingest import consume
from daemon.store import database_file, duckdb_database, duckdb_store
from tests.faults import life, shim


@pytest.fixture(autouse=True, scope="module")
def prepared() -> Iterator[None]:
    before = (consume.backoff, duckdb_store.QUIET_LOG, database_file.ROW_GROUP, duckdb_database.duckdb_options)
    logs = structlog.get_config()
    life.prepare()
    yield
    consume.backoff, duckdb_store.QUIET_LOG, database_file.ROW_GROUP, duckdb_database.duckdb_options = before
    structlog.configure(**logs)


@pytest.fixture(scope="session")
def compiled() -> Path:
    """The shim; without a C compiler its tests are skipped, and with CI=true they fail."""
    try:
        return shim.build()
    except UnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
