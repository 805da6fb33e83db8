"""One learner a store: a lock of our own beside the file, because DuckDB's vanishes when its file is opened a second time.

The lock's file names its holder and the holder's epoch. A lock can be got round: a folder restored over a running learner, a
copied file, a shared disk that does not lock. So the holder looks again before it writes, and stops when it is no more.
"""

import fcntl
import os
import socket
from pathlib import Path

from daemon.core.errors import LockedError, StoreError


class FileLock:
    """Held from construction to `close`, and gone with the process. Raises LockedError naming the holder."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise LockedError(
                f"{path} is held by {holder}; stop it, or give this learner a store of its own"
            ) from error
        self._say(f"process {os.getpid()} on {socket.gethostname()}")

    def claim(self, epoch: int) -> None:
        """From now on we hold the store as this opening of it, which nobody else ever was."""
        self.check()
        self._say(f"process {os.getpid()} on {socket.gethostname()}, epoch {epoch}")

    def check(self) -> None:
        """Raises LockedError when somebody else has the store by now, whatever became of our lock; StoreError: try again."""
        held = os.fstat(self._file.fileno())
        try:
            found = self._path.stat()
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise LockedError(f"{self._path} is gone; nothing is written without it: start again") from error
        except OSError as error:
            raise StoreError(f"{self._path} cannot be looked at, so nothing is written: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino) or text != self._text:
            raise LockedError(
                f"{self._path} was taken over by another process ({text.strip() or 'not named'}); nothing more is written here"
            )

    def close(self) -> None:
        self._file.close()

    def _say(self, holder: str) -> None:
        self._text = f"{holder}\n"
        self._file.truncate(0)
        self._file.write(self._text)
        self._file.flush()
