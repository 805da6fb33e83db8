"""The run folder: the only contract between learner and worker.

The learner writes run.json (RunSpec), policy.json (the resolved Policy) and data/*.parquet, then starts the worker. The
worker appends to progress.jsonl, writes artefact/ (and base/ when the graph is new) and, last, result.json. A folder
without result.json is a run that did not finish.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from daemon.core.errors import RunError
from daemon.core.types import Progress, RunResult, RunSpec
from daemon.policy.schema import Policy
from daemon.runtime.records import decode, encode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def artefact(self) -> Path:
        return self.path / "artefact"

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    def write_request(self, spec: RunSpec, policy: Policy) -> None:
        _write(self.path / "policy.json", policy.model_dump_json(indent=2).encode())
        _write(self.path / "run.json", encode(spec))

    def read_spec(self) -> RunSpec:
        return _read(self.path / "run.json", RunSpec)

    def read_policy(self) -> Policy:
        return Policy.model_validate_json((self.path / "policy.json").read_bytes())

    def append_progress(self, progress: Progress) -> None:
        with (self.path / "progress.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(progress) + b"\n")

    def follow_progress(self) -> Iterator[Progress | None]:
        """Each progress line once, in order; None whenever there is no complete new line. Never ends by itself."""
        position = 0
        while True:
            lines, position = self._complete_lines(position)
            for line in lines:
                yield msgspec.json.decode(line, type=Progress)
            yield None

    def _complete_lines(self, position: int) -> tuple[list[bytes], int]:
        try:
            with (self.path / "progress.jsonl").open("rb") as file:
                file.seek(position)
                fresh = file.read()
        except FileNotFoundError:
            return [], position
        complete = fresh[: fresh.rfind(b"\n") + 1]
        return complete.splitlines(), position + len(complete)

    def write_result(self, result: RunResult) -> None:
        _write(self.path / "result.json", encode(result))

    def read_result(self) -> RunResult:
        """Raises RunError when the worker left none."""
        return _read(self.path / "result.json", RunResult)

    def give_room_back(self) -> None:
        """Remove the frozen examples and what was made of them; what was asked for, the progress and the log stay."""
        for each in self.path.iterdir() if self.path.exists() else ():
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)


def erase_data(run: Path) -> None:
    """Remove the frozen examples of a run, not what came of them; `run.json` goes on saying which they were, by digest."""
    shutil.rmtree(run / "data", ignore_errors=True)
    if (run / "data").exists():
        raise RunError(f"{run / 'data'} cannot be removed; do so by hand and restart the learner")


def remove_old_runs(runs: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` run folders; their names sort by time."""
    folders = sorted(folder for folder in runs.iterdir() if folder.is_dir())
    for folder in folders[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    """Complete or not there at all: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return decode(path.read_bytes(), kind)
    except (OSError, UnicodeError, msgspec.MsgspecError) as error:
        raise RunError(f"{path} cannot be read as a {kind.__name__}: {error}") from error
