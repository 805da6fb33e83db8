"""Who is alive and what they are doing: heartbeats of loops, states of components, the stage of the cycle."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from daemon.core.ports import Clock
from daemon.core.types import DriftReport, Progress


@dataclass(frozen=True, slots=True)
class Component:
    """`state` is "ok", "degraded" or "failed"; `since` when it became so."""

    state: str
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Activity:
    """What the cycle is doing."""

    stage: str  # starting, idle, observing, training, judging, promoting
    since: datetime
    run_id: str | None = None
    triggers: tuple[str, ...] = ()
    progress: Progress | None = None


class Board:
    """The one place to look; written by the loops, read by the control API. Safe from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._components: dict[str, Component] = {}
        self._activity = Activity("starting", clock())
        self._drift: DriftReport | None = None

    def report(self, component: str, state: str, detail: str = "") -> None:
        """`since` moves only when the state does."""
        with self._lock:
            before = self._components.get(component)
            since = before.since if before and before.state == state else self._clock()
            self._components[component] = Component(state, detail, since)

    def enter(self, stage: str, *, run_id: str | None = None, triggers: tuple[str, ...] = ()) -> None:
        with self._lock:
            self._activity = Activity(stage, self._clock(), run_id, triggers)

    def progressed(self, progress: Progress) -> None:
        with self._lock:
            now = self._activity
            self._activity = Activity(now.stage, now.since, now.run_id, now.triggers, progress)

    def observed(self, drift: DriftReport | None) -> None:
        with self._lock:
            self._drift = drift

    @property
    def activity(self) -> Activity:
        with self._lock:
            return self._activity

    @property
    def drift(self) -> DriftReport | None:
        with self._lock:
            return self._drift

    @property
    def components(self) -> Mapping[str, Component]:
        with self._lock:
            return dict(self._components)


class Heartbeats:
    """Each loop beats; one that has not for longer than its limit is stuck. Times are monotonic seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._limits: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._held_up: dict[str, Callable[[], bool]] = {}

    def expect(self, loop: str, limit: float, *, held_up: Callable[[], bool] = lambda: False) -> Callable[[], None]:
        """Register a loop; returns what it must call at least every `limit` seconds. It may be silent while `held_up`."""
        self._limits[loop] = limit
        self._last[loop] = self._monotonic()
        self._held_up[loop] = held_up

        def beat() -> None:
            self._last[loop] = self._monotonic()

        return beat

    def stuck(self) -> Mapping[str, float]:
        """Loops beyond their limit, with seconds since their last beat."""
        now = self._monotonic()
        self._last.update({loop: now for loop, held_up in self._held_up.items() if held_up()})
        silence = {loop: now - last for loop, last in self._last.items()}
        return {loop: seconds for loop, seconds in silence.items() if seconds > self._limits[loop]}
