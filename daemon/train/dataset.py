"""The examples of a run, as the learner froze them in the run folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from daemon.core.errors import RunError
from daemon.core.types import DataManifest

TRAIN = "train.parquet"
REPLAY = "replay.parquet"
VALIDATION = "validation.parquet"
HOLDOUT = "holdout.parquet"


@dataclass(frozen=True, slots=True)
class FrozenExample:
    """One row of a snapshot. `recent`: it came after what the parent was trained on."""

    id: str
    text: str
    label: str
    source: str
    recent: bool


ANCHOR = "anchor.jsonl"

_COLUMNS = list(FrozenExample.__dataclass_fields__)


def read_examples(folder: Path, name: str, manifest: DataManifest) -> Sequence[FrozenExample]:
    """In the order of the file. Raises RunError when it is not the file that the manifest describes."""
    path = folder / name
    try:
        content = path.read_bytes()
        _check_digest(path, content, manifest.files.get(name))
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content), columns=_COLUMNS)
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return [FrozenExample(*row) for row in zip(*(table.column(column).to_pylist() for column in _COLUMNS), strict=True)]


def read_anchor(folder: Path, sha256: str) -> Sequence[FrozenExample]:
    """The operator's own examples; none where `sha256` is empty. Raises RunError when it is not the file that was pinned."""
    if not sha256:
        return []
    path = folder / ANCHOR
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    _check_digest(path, content, sha256)
    rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    return [
        FrozenExample(f"anchor-{n}", row["text"], row["label"], "anchor", recent=False) for n, row in enumerate(rows, 1)
    ]


def _check_digest(path: Path, content: bytes, expected: str | None) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise RunError(
            f"{path} has sha256 {found}, run.json says {expected}: the snapshot was changed; start a new run"
        )
