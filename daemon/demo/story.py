"""What the demo shows and tells: frozen pictures of everything that was seen from outside.

Seconds are counted from the start of the demo, latencies in milliseconds, accuracies as shares.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from daemon.demo.readings import Status
from daemon.demo.rounds import Round, Scored


class Kind(StrEnum):
    SOURCE = "source"
    DRIFT = "drift"
    RUN = "run"
    PROMOTION = "promotion"
    REJECTION = "rejection"
    SWAP = "swap"
    ROUND = "round"


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a mark: when, after how many examples produced, and a sentence."""

    at: float
    example: int
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it is kept: when its answer came, how long it took, who answered (None: it failed)."""

    at: float
    ms: float
    version: int | None


@dataclass(frozen=True, slots=True)
class Point:
    """Prequential accuracy after one more scored answer."""

    answer: Scored
    accuracy: float


@dataclass(frozen=True, slots=True)
class Leg:
    """One source's part of the stream: examples after `first` up to `last`."""

    source: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The demo at one moment. Percentiles are of the newest requests."""

    seconds: float
    source: str
    produced: int
    status: Status | None
    points: Sequence[Point]
    version: int | None
    sent: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    rounds: Sequence[Round]
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Story:
    """The demo from its start to its end."""

    seconds: float
    legs: Sequence[Leg]
    points: Sequence[Point]
    asked: Sequence[Asked]
    errors: Sequence[str]
    swaps: Sequence[float]
    events: Sequence[Event]
    rounds: Sequence[Round]
    produced_at: Sequence[float]

    def example_at(self, at: float) -> int:
        """How many examples had been produced by then."""
        return bisect_right(self.produced_at, at)
