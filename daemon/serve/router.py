"""Which servable answers. A request borrows a handle; a version is let go only when no handle on it is left.

The champion answers, or the version that a request names. While there is a canary it answers a share of the requests that name
none: by a hash of the request's key, so that the same request has the same answer, and who met the canary at 5% does at 10% too.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from typing import Protocol, Self

from daemon.core.artefact import Golden
from daemon.core.errors import ArtefactError, ExpiredError, NotFoundError, NotReadyError
from daemon.core.types import ModelVersion, Prediction
from daemon.serve.traffic import Asked, Fate, Traffic

Tokens = Sequence[int]  # a text as the graph reads it


class Predictor(Protocol):
    """What a handle lends: answers of one version. Safe from any thread; `infer` and `predict` may raise ArtefactError."""

    def encode(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """One row a text: cheap, and apart from `infer` so that it can be done while another inference runs."""

    def infer(self, rows: Sequence[Tokens]) -> Sequence[Prediction]:
        """All in one inference, padded to the longest."""

    def predict(self, texts: Sequence[str]) -> Sequence[Prediction]:
        """Both, for any number of texts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version ready to answer, and what it must answer to its golden texts."""

    predictor: Predictor
    golden: Golden


class Slot:
    """A loaded version, what it must answer to its golden texts, and how many handles are on it."""

    def __init__(self, version: ModelVersion, predictor: Predictor, golden: Golden | None = None) -> None:
        self.version = version
        self.predictor = predictor
        self.golden = golden
        self._borrowed = 0
        self._draining = False
        self._changed = threading.Condition()

    @property
    def busy(self) -> bool:
        return self._borrowed > 0

    def borrow(self) -> bool:
        """False once draining has begun."""
        with self._changed:
            self._borrowed += not self._draining
            return not self._draining

    def give_back(self) -> None:
        with self._changed:
            self._borrowed -= 1
            if self._draining:
                self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Lend no more and wait for what is lent; False when some is still out after `timeout` seconds."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._borrowed == 0, timeout)


Overheard = Callable[[Slot, Sequence[str], Sequence[Prediction]], None]
"""Told the shadow, the texts of a request and what the champion answered. Must return at once."""


class Handle:
    """A borrowed reference to one version, as a context manager: inside it, the version stays loaded.

    What happens inside is what a swap is judged by, where there is `traffic`: leave by an exception when the answer could not be
    given.
    """

    def __init__(self, slot: Slot, traffic: Traffic | None, shadow: Slot | None, overheard: Overheard) -> None:
        self._slot = slot
        self._traffic = traffic
        self._shadow = shadow
        self._overheard = overheard
        self._since = traffic.now() if traffic else 0.0
        self.version = slot.version
        self.predictor = slot.predictor
        self.golden = slot.golden

    def answered(self, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
        """Lets the shadow, if there is one, be compared with this answer later."""
        if self._shadow is not None:
            self._overheard(self._shadow, texts, predictions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if traffic := self._traffic:
            now = traffic.now()
            seconds = now - self._since
            traffic.add(Asked(now, seconds, self.version.number, _fate(error, seconds, traffic.patience)))
        self._slot.give_back()


_OURS = (
    ArtefactError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a predictor that does not work raises; not a client that left, a full queue, or a deadline."""


def _fate(error: BaseException | None, seconds: float, patience: float) -> Fate:
    """A deadline of the client's own, shorter than ours, speaks against nobody."""
    if error is None:
        return Fate.ANSWERED
    if isinstance(error, _OURS):
        return Fate.FAILED
    return Fate.LATE if isinstance(error, ExpiredError) and seconds >= patience else Fate.GIVEN_UP


@dataclass(frozen=True, slots=True)
class _Routes:
    """Who answers. `canary` answers `canary_share` of the requests that name no version; `slots` are all that may be named."""

    champion: Slot | None = None
    slots: Mapping[int, Slot] = field(default_factory=dict)
    canary: Slot | None = None
    canary_share: float = 0.0
    shadow: Slot | None = None


def _nobody(shadow: Slot, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Overhears nothing."""


class Router:
    """Lends handles to any thread. `publish` is called by the manager's thread alone; it replaces one reference."""

    def __init__(self, traffic: Traffic | None = None, overheard: Overheard = _nobody) -> None:
        self.traffic = traffic or Traffic()
        self._overheard = overheard
        self._routes = _Routes()

    def handle(self, number: int | None = None, *, key: str | None = None, counted: bool = True) -> Handle:
        """On the version with this number; without one, on whom `key` (a request's id, or its text) falls to; else on the champion.

        `counted`: whether it is a request. Raises NotReadyError or NotFoundError.
        """
        while True:
            routes = self._routes
            slot = _whose_turn(routes, key) if number is None else _pinned(routes, number)
            if slot.borrow():
                shadow = routes.shadow if slot is routes.champion else None
                return Handle(slot, self.traffic if counted else None, shadow, self._overheard)
            # It began to drain since `routes` was read, so newer routes, without it, are already there.

    def publish(
        self,
        champion: Slot | None,
        slots: Mapping[int, Slot],
        *,
        canary: Slot | None = None,
        canary_share: float = 0.0,
        shadow: Slot | None = None,
    ) -> None:
        self._routes = _Routes(champion, dict(slots), canary, canary_share, shadow)

    @property
    def busy(self) -> bool:
        """Whether any handle is out."""
        return any(slot.busy for slot in self._routes.slots.values())

    @property
    def served(self) -> ModelVersion | None:
        champion = self._routes.champion
        return champion.version if champion else None

    @property
    def canary(self) -> ModelVersion | None:
        canary = self._routes.canary
        return canary.version if canary else None

    @property
    def shadow(self) -> ModelVersion | None:
        shadow = self._routes.shadow
        return shadow.version if shadow else None

    @property
    def loaded(self) -> Sequence[int]:
        return sorted(self._routes.slots)


def falls_to_canary(key: str, share: float) -> bool:
    """The same for the same key; true of `share` of all keys, and of a larger share for these and more."""
    return int.from_bytes(blake2b(key.encode(errors="replace"), digest_size=8).digest()) < share * 2**64


def _whose_turn(routes: _Routes, key: str | None) -> Slot:
    if routes.champion is None:
        raise NotReadyError("no champion is loaded yet; try again, and see /status for what is being waited for")
    if routes.canary is not None and key is not None and falls_to_canary(key, routes.canary_share):
        return routes.canary
    return routes.champion


def _pinned(routes: _Routes, number: int) -> Slot:
    if number not in routes.slots:
        raise NotFoundError(
            f"version {number} is not loaded here; loaded are {sorted(routes.slots)}: those with an alias and the newest "
            "(server.keep_versions)"
        )
    return routes.slots[number]
