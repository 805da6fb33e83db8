"""`relearnd run` as a subprocess: one learner and one server, as an operator would start them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from daemon.core.errors import RelearndError

STOP_LIMIT_SECONDS = 130.0  # more than the supervisor gives its two children
LAST_WORDS_LINES = 15


class Service:
    """The process, in a session of its own: a Ctrl-C in the terminal is ours to pass on."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raises RelearndError, with the end of its log, when the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise RelearndError(
                f"`relearnd run` ended with exit code {code}; the end of {self._log}:\n{self._last_words()}"
            )

    def stop(self) -> int:
        """SIGTERM, wait, and after a while SIGKILL to all of it. Returns the exit code; safe to repeat."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LAST_WORDS_LINES:])


@contextmanager
def running_service(config: Path, log: Path) -> Iterator[Service]:
    """Started on entry, gone on exit with all its children, whatever happens."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        service = Service(process, log)
        try:
            yield service
        finally:
            service.stop()
