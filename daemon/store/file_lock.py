"""One learner a store: a lock of our own beside the file, because DuckDB's vanishes when its file is opened a second time."""

import fcntl
import os
import socket
from pathlib import Path

from daemon.core.errors import LockedError


class FileLock:
    """Held from construction to `close`, and gone with the process. Raises LockedError naming the holder."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise LockedError(
                f"{path} is held by {holder}; stop it, or give this learner a store of its own"
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
