"""Which servable answers. A request borrows a handle; a version is let go only when no handle on it is left."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from daemon.core.errors import NotFoundError, NotReadyError
from daemon.core.types import ModelVersion, Prediction


class Predictor(Protocol):
    """What a handle lends: answers of one version. Safe from any thread; may raise ArtefactError."""

    def predict(self, texts: Sequence[str]) -> Sequence[Prediction]: ...


class Slot:
    """A loaded version and how many handles are on it."""

    def __init__(self, version: ModelVersion, predictor: Predictor) -> None:
        self.version = version
        self.predictor = predictor
        self._borrowed = 0
        self._draining = False
        self._changed = threading.Condition()

    def borrow(self) -> bool:
        """False once draining has begun."""
        with self._changed:
            self._borrowed += not self._draining
            return not self._draining

    def give_back(self) -> None:
        with self._changed:
            self._borrowed -= 1
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Lend no more and wait for what is lent; False when some is still out after `timeout` seconds."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._borrowed == 0, timeout)


class Handle:
    """A borrowed reference to one version, as a context manager: inside it, the version stays loaded."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.version = slot.version
        self.predictor = slot.predictor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slot.give_back()


@dataclass(frozen=True, slots=True)
class _Routes:
    champion: Slot | None = None
    slots: Mapping[int, Slot] = field(default_factory=dict)


class Router:
    """Lends handles to any thread. `publish` is called by the manager's thread alone; it replaces one reference."""

    def __init__(self) -> None:
        self._routes = _Routes()

    def handle(self, number: int | None = None) -> Handle:
        """On the champion, or on the version with this number. Raises NotReadyError or NotFoundError."""
        while True:
            routes = self._routes
            slot = _champion(routes) if number is None else _pinned(routes, number)
            if slot.borrow():
                return Handle(slot)
            # It began to drain since `routes` was read, so newer routes, without it, are already there.

    def publish(self, champion: Slot | None, slots: Mapping[int, Slot]) -> None:
        self._routes = _Routes(champion, dict(slots))

    @property
    def served(self) -> ModelVersion | None:
        champion = self._routes.champion
        return champion.version if champion else None

    @property
    def loaded(self) -> Sequence[int]:
        return sorted(self._routes.slots)


def _champion(routes: _Routes) -> Slot:
    if routes.champion is None:
        raise NotReadyError("no champion is loaded yet; try again, and see /status for what is being waited for")
    return routes.champion


def _pinned(routes: _Routes, number: int) -> Slot:
    if number not in routes.slots:
        raise NotFoundError(f"version {number} is not loaded here; loaded are {sorted(routes.slots)}")
    return routes.slots[number]
