"""Gauges that are read when somebody looks: what cannot be read leaves them as they were, and spoils no other."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from daemon.core.errors import RelearndError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Readings:
    """`sources`: by the name of what is read, the function that reads it and then sets its gauges. `failed` is told which.

    A failure is logged and told once, until that source was read again. Safe from any thread.
    """

    sources: Mapping[str, Callable[[], None]]
    failed: Callable[[str], None]
    _failing: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        with self._lock:
            for source, read in self.sources.items():
                try:
                    read()
                except RelearndError as error:
                    self._note(source, error)
                else:
                    self._failing.discard(source)

    def _note(self, source: str, error: RelearndError) -> None:
        if source not in self._failing:
            self._failing.add(source)
            self.failed(source)
            log.error(f"the gauges of the {source} stay as they were: {error}", action="gauges_not_read", source=source)
