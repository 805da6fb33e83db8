"""A trainer that does what the test wrote down, in its order."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from daemon.core.errors import RunError
from daemon.core.types import Progress, RunResult, RunSpec
from daemon.runs.cancellation import Cancellation

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
        self._cancellation = Cancellation()
        self.expect = self._cancellation.expect
        self.cancel = self._cancellation.ask
        self.check = self._cancellation.check
        self.runs: list[RunSpec] = []
        self.gave_room_back: list[Path] = []

    def train(self, folder: Path, spec: RunSpec, on_progress: Callable[[Progress], None]) -> RunResult:
        self.expect(spec.run_id)
        self.check()
        self.runs.append(spec)
        on_progress(Progress(datetime.now(UTC), "train", 0, 1, "step"))
        return self._next(spec)

    def give_room_back(self, folder: Path) -> None:
        self.gave_room_back.append(folder)

    def _next(self, spec: RunSpec) -> RunResult:
        step = next(self._script, None)
        match step:
            case None:
                raise RunError(f"run {spec.run_id} is not in the script")
            case RunError():
                raise step
            case HangsUntilCancelled():
                step.started.set()
                return self._hang()
            case _:
                return step(spec)

    def _hang(self) -> NoReturn:
        while True:
            self.check()
            time.sleep(0.002)
