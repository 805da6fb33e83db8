"""People as keyed hashes: the store can look for a person, and does not say who they are without the operator's key."""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemon.core.errors import ConfigError

SHORTEST_KEY = 16  # bytes


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """The operator's key. Lose it and nobody can be found any more; change it and only new records are found."""

    key: bytes

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file's content without white space around it. Raises ConfigError."""
        try:
            key = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"store.subject_key_file {path} cannot be read: {error.strerror}") from error
        if len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"store.subject_key_file {path} holds {len(key)} bytes, at least {SHORTEST_KEY} are needed; "
                "make one: `openssl rand -hex 32`"
            )
        return cls(key)

    def hash_of(self, person: str) -> str:
        """Hexadecimal HMAC-SHA256."""
        return hmac.new(self.key, person.encode(), hashlib.sha256).hexdigest()
