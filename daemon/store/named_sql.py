"""SQL with names: `-- name: xyz` starts a statement that goes on to the next name."""

import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def read_schema() -> str:
    return (files(__package__) / "schema.sql").read_text()


def read_queries(*names: str) -> Mapping[str, str]:
    """The statements of these files together."""
    return {name: statement for file in names for name, statement in _statements(file).items()}


def _statements(file: str) -> Mapping[str, str]:
    _, *parts = _NAME.split((files(__package__) / file).read_text())
    return {name: statement.strip() for name, statement in zip(parts[::2], parts[1::2], strict=True)}
