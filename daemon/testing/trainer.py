"""A trainer that does what the test wrote down, in its order."""

import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from daemon.core.errors import RunCancelled, RunError
from daemon.core.types import Progress, RunResult, RunSpec

Finishes = Callable[[RunSpec], RunResult]


class HangsUntilCancelled:
    """A run that goes on until somebody calls `cancel`. `started` is set once it goes."""

    def __init__(self) -> None:
        self.started = threading.Event()


Scripted = Finishes | RunError | HangsUntilCancelled


class FakeTrainer:
    """Implements `ports.Trainer`. Each run takes the next entry of the script; `runs` are the specs it was given.

    A run beyond the script fails, so that a test notices one that it did not expect.
    """

    def __init__(self, script: Iterable[Scripted] = ()) -> None:
        self._script: Iterator[Scripted] = iter(script)
        self._cancelled: SimpleQueue[RunCancelled] | None = None  # of the run that is going or expected
        self.runs: list[RunSpec] = []

    def expect(self) -> None:
        self._cancelled = SimpleQueue()

    def train(self, folder: Path, spec: RunSpec, on_progress: Callable[[Progress], None]) -> RunResult:
        cancelled = self._cancelled = self._cancelled or SimpleQueue()
        try:
            if not cancelled.empty():
                raise cancelled.get()
            self.runs.append(spec)
            on_progress(Progress(datetime.now(UTC), "train", 0, 1, "step"))
            return self._next(spec, cancelled)
        finally:
            self._cancelled = None

    def cancel(self, why: RunCancelled | None = None) -> None:
        cancelled = self._cancelled
        if cancelled is not None:
            cancelled.put(why or RunCancelled("the run was cancelled"))

    def _next(self, spec: RunSpec, cancelled: SimpleQueue[RunCancelled]) -> RunResult:
        step = next(self._script, None)
        match step:
            case None:
                raise RunError(f"run {spec.run_id} is not in the script")
            case RunError():
                raise step
            case HangsUntilCancelled():
                step.started.set()
                raise cancelled.get()
            case _:
                return step(spec)
