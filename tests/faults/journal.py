"""Which points were played and what came of each, on disk: a sweep that was stopped goes on where it was."""

import json
from dataclasses import asdict
from pathlib import Path

from tests.faults.invariants import Finding

Played = tuple[int, Finding]  # how many blows struck, and what was wrong afterwards


class Journal:
    """A line for each point. Only the code and the seed that began it may go on with it."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Without `resume` what was noted before is forgotten."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+" if resume else "w+")
        self._file.seek(0)
        self.played: dict[str, Played] = {}
        for line in self._file:
            point, struck, finding = json.loads(line)
            self.played[point] = struck, Finding(**finding)

    def note(self, point: str, struck: int, finding: Finding) -> None:
        self._file.write(json.dumps([point, struck, asdict(finding)]) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
