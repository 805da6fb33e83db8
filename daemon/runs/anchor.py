"""The anchor: examples given by the operator, never from Kafka, on which every version is scored. Whoever poisons the stream
cannot change them, and a file that changed without its pin is refused.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from daemon.core.errors import ConfigError, RunError
from daemon.runtime.files import write_durably

ANCHOR = "anchor.jsonl"
_FIELDS = ("text", "label")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A file of one JSON object a line, with text and label."""

    path: Path
    sha256: str

    def copy_to(self, folder: Path) -> None:
        """Raises RunError when the file is no longer the one that was pinned."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise RunError(
                f"task.anchor {self.path} has changed since the start; restart the learner to have it checked"
            )
        write_durably(folder / ANCHOR, content)


def pinned_anchor(path: Path, pin: str | None, first_seen: str | None) -> Anchor:
    """`pin`: the sha256 that the config asks for; without one, `first_seen`, where it was used before, counts.

    Raises ConfigError when the file is another one, or no anchor at all.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"task.anchor {path} cannot be read: {error.strerror}") from error
    found, wanted = hashlib.sha256(content).hexdigest(), pin or first_seen
    if wanted and found != wanted:
        raise ConfigError(
            f"task.anchor {path} has the sha256 {found}, not {wanted}: somebody changed it. If that was you, set "
            "task.anchor_sha256 to the new one; scores before and after cannot be compared"
        )
    _check(path, content)
    return Anchor(path, found)


def _check(path: Path, content: bytes) -> None:
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"task.anchor {path} is empty")
    for number, line in enumerate(lines, 1):
        try:
            example = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"task.anchor {path}: line {number} is not JSON: {error}") from error
        if not isinstance(example, dict) or not all(isinstance(example.get(name), str) for name in _FIELDS):
            raise ConfigError(f"task.anchor {path}: line {number} has no text or no label")
