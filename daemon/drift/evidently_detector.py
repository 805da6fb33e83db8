"""Evidently in a child: the learner asks, waits a bounded time, and never loads pandas or Evidently itself.

Loading Evidently takes seconds of a core and a third of a gigabyte, one comparison a tenth of a second. So the child
(`daemon.drift.evidently_report`) takes one request a line on its standard input for as long as they keep coming, and goes,
with its memory, when none came for a while or the learner is gone. Nothing is written to disk.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from daemon.core.errors import DriftError
from daemon.core.types import ColumnDrift, DriftTest, WindowRow

_LAST_WORDS = 300  # bytes of the child's stderr kept in an error


class EvidentlyDetector:
    """A DriftDetector. `timeout` bounds one call, `idle` is how long an unused child stays, `python` has Evidently."""

    def __init__(
        self, *, timeout: timedelta, idle: timedelta = timedelta(minutes=1), python: Path | None = None
    ) -> None:
        self._timeout = timeout
        self._idle = idle
        self._command = [str(python or sys.executable), "-m", "daemon.drift.evidently_report"]
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._release: threading.Timer | None = None

    def detect(
        self, reference: Sequence[WindowRow], current: Sequence[WindowRow], tests: Sequence[DriftTest]
    ) -> Sequence[ColumnDrift]:
        with_values = [test for test in tests if _column(reference, test.column) and _column(current, test.column)]
        answers = self._ask(_request(reference, current, with_values)) if with_values else {}
        return [_result(test, answers.get(test.column)) for test in tests]

    def close(self) -> None:
        """End the child, if there is one. `detect` may be called again."""
        with self._lock:
            self._end_child()

    def _ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            self._child = self._child or _Child(self._command)
            output = self._child.ask(line, self._timeout)
            if not output:
                words = self._child.last_words(self._timeout)
                self._end_child()
                raise DriftError(words)
            self._release_when_idle()
        return _answers(output)

    def _release_when_idle(self) -> None:
        if self._release:
            self._release.cancel()
        self._release = threading.Timer(self._idle.total_seconds(), self.close)
        self._release.daemon = True
        self._release.start()

    def _end_child(self) -> None:
        if self._release:
            self._release.cancel()
        if self._child:
            self._child.end()
        self._child, self._release = None, None


class _Child:
    """One process, one line in and one line out. Used under the detector's lock."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._timed_out = False
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            self._errors.close()
            raise DriftError(f"the drift child could not be started: {error}") from error

    def ask(self, line: bytes, timeout: timedelta) -> bytes:
        """The answer's line; empty when the process is gone, which it is made to be after `timeout`."""
        assert self._process.stdin and self._process.stdout
        deadline = threading.Timer(timeout.total_seconds(), self._stop)
        deadline.start()
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            deadline.cancel()
        return answer if answer.endswith(b"\n") else b""

    def _stop(self) -> None:
        self._timed_out = True
        self._process.kill()

    def last_words(self, timeout: timedelta) -> str:
        """Why there was no answer. The process has ended or is about to."""
        code = self._process.wait()
        if self._timed_out:
            return f"the drift child gave no answer within {timeout.total_seconds():.0f} s and was stopped"
        self._errors.seek(0)
        words = self._errors.read()[-_LAST_WORDS:].decode(errors="replace").strip()
        return f"the drift child ended with {code}: {words or 'no message'}"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def _answers(output: bytes) -> Mapping[str, Any]:
    try:
        answers = json.loads(output)
    except ValueError as error:
        raise DriftError(f"the drift child's answer is not JSON: {error}") from error
    if not isinstance(answers, dict):
        raise DriftError("the drift child's answer is not an object")
    return answers


def _request(
    reference: Sequence[WindowRow], current: Sequence[WindowRow], tests: Sequence[DriftTest]
) -> Mapping[str, Any]:
    return {
        "tests": [{"column": test.column, "method": test.method, "threshold": test.threshold} for test in tests],
        "reference": {test.column: _column(reference, test.column) for test in tests},
        "current": {test.column: _column(current, test.column) for test in tests},
    }


def _column(rows: Sequence[WindowRow], column: str) -> list[str] | list[float]:
    """The values of a column; without those that are not there (no champion: no prediction, no confidence)."""
    if column == "text_length":
        return [float(len(row.text)) for row in rows]
    if column == "word_count":
        return [float(len(row.text.split())) for row in rows]
    if column == "confidence":
        return [row.confidence for row in rows if math.isfinite(row.confidence)]
    return [value for row in rows if (value := getattr(row, column))]


def _result(test: DriftTest, answer: Mapping[str, Any] | None) -> ColumnDrift:
    if answer is None:
        return test.unknown("not computed: one of the windows has no values of this column")
    if answer.get("error") is not None:
        return test.unknown(str(answer["error"]))
    score = answer.get("score")
    return test.measured(float(score) if isinstance(score, int | float) else math.nan)
