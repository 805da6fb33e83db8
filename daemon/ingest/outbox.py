"""Copies dead letters to a topic for others: each at least once, in the order of their numbers.

The store has them already, so nothing waits for this: a topic that is missing or denied leaves them waiting, visible in the
status and the metrics. How far we are is marked in the store after delivery is confirmed; who dies in between copies those
letters again, under the same keys.
"""

import random
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import structlog

from daemon.core.errors import OutcomeUnknownError, SourceError
from daemon.core.ports import Clock
from daemon.core.stream import DeadLetter
from daemon.ingest.consume import backoff
from daemon.runtime.failpoints import failpoint
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

MARK = "dead_letters_copied"  # the fact in the store: the number of the last one delivered
AT_ONCE = 200  # letters between two marks
LOOK_EVERY = 1.0  # seconds, when none waits


class Letters(Protocol):
    """What the outbox needs of the store."""

    def letters_after(self, seq: int, limit: int) -> Sequence[tuple[int, DeadLetter]]: ...
    def letters_waiting(self, seq: int) -> tuple[int, datetime | None]: ...
    def get(self, key: str) -> Any | None: ...
    def put(self, key: str, value: Any) -> None: ...


class Publisher(Protocol):
    """Where copies go."""

    def publish(self, letters: Sequence[DeadLetter]) -> None:
        """Delivery of all of them is confirmed on return. Raises SourceError; some may have been delivered then."""

    def close(self) -> None: ...


class Outbox:
    """One thread's work. `tell` hears how it is: "ok" or "degraded", and why."""

    def __init__(
        self,
        store: Letters,
        publisher: Publisher,
        *,
        clock: Clock,
        rng: random.Random,
        metrics: LearnerMetrics,
        tell: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._tell = tell

    def run(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        """Steps until `stop`, with backoff while copies are not taken. StoreError ends it."""
        failures = 0
        try:
            while not stop.is_set():
                beat()
                try:
                    copied = self.step()
                except (SourceError, OutcomeUnknownError) as error:
                    failures += 1
                    self._report_failure(error, failures)
                    stop.wait(backoff(failures, self._rng))
                    continue
                failures = 0
                self._tell("ok", "")
                if not copied:
                    stop.wait(LOOK_EVERY)
        finally:
            self._publisher.close()

    def step(self) -> int:
        """Copy some of those that wait, and mark how far we are; returns how many."""
        mark = int(self._store.get(MARK) or 0)
        self._measure(mark)
        numbered = self._store.letters_after(mark, AT_ONCE)
        if not numbered:
            return 0
        self._publisher.publish([letter for _, letter in numbered])
        failpoint("before_outbox_mark")
        mark = numbered[-1][0]
        self._store.put(MARK, mark)
        self._measure(mark)
        return len(numbered)

    def _measure(self, mark: int) -> None:
        waiting, oldest = self._store.letters_waiting(mark)
        self._metrics.outbox_letters.set(waiting)
        self._metrics.outbox_age.set((self._clock() - oldest).total_seconds() if oldest else 0.0)

    def _report_failure(self, error: Exception, failures: int) -> None:
        self._tell("degraded", str(error))
        if failures == 1:
            log.error(f"dead letters wait in the store: {error}", action="outbox_failed")
