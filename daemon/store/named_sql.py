"""SQL with names: `-- name: xyz` starts a statement that goes on to the next name."""

import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def read_schema() -> str:
    return (files(__package__) / "schema.sql").read_text()


def read_queries() -> Mapping[str, str]:
    _, *parts = _NAME.split((files(__package__) / "queries.sql").read_text())
    return {name: statement.strip() for name, statement in zip(parts[::2], parts[1::2], strict=True)}
