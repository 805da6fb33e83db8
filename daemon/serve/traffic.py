"""What requests met: which version answered them, how long that took, and which failed. What a swap is judged by."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from threading import Lock
from typing import NamedTuple

REMEMBERED = 8192  # requests
_FINENESS = 100  # times are counted in steps of about 1%
_LEAST = 1e-6  # seconds


class Fate(StrEnum):
    ANSWERED = "answered"
    FAILED = "failed"  # by a fault of ours
    LATE = "late"  # no answer within the server's own limit, whatever the client had patience for
    GIVEN_UP = "given up"  # no room, or the client left: speaks against no version


class Asked(NamedTuple):
    """`ended` and `seconds` by a monotonic clock."""

    ended: float
    seconds: float
    version: int
    fate: Fate


@dataclass(frozen=True, slots=True)
class Span:
    """The newest requests. `p99_ms` is None when there were none."""

    requests: int
    answered: int
    failed: int
    late: int
    p99_ms: float | None


class Tally:
    """Every request between two moments, however many: counts are exact, times within 1%. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._fates: Counter[tuple[int, Fate]] = Counter()
        self._times: Counter[int] = Counter()

    def add(self, asked: Asked) -> None:
        with self._lock:
            self._fates[asked.version, asked.fate] += 1
            self._times[math.ceil(_FINENESS * math.log(max(asked.seconds, _LEAST)))] += 1

    def count(self, fate: Fate | None = None, *, version: int | None = None) -> int:
        with self._lock:
            return sum(
                count
                for (number, each), count in self._fates.items()
                if fate in (None, each) and version in (None, number)
            )

    @property
    def p99_ms(self) -> float | None:
        with self._lock:
            left = self._times.total() - _rank(self._times.total())
            for step in sorted(self._times, reverse=True):
                if left < self._times[step]:
                    return 1000 * math.exp(step / _FINENESS)
                left -= self._times[step]
        return None


class Traffic:
    """`add` may be called from any thread and costs a request under a microsecond, a few while there is a tally; the rest is for
    the manager's thread.

    `patience`: seconds within which the server means to answer.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        patience: float = math.inf,
        remembered: int = REMEMBERED,
    ) -> None:
        self.now = monotonic
        self.patience = patience
        self._newest: deque[Asked] = deque(maxlen=remembered)
        self._tallies: tuple[Tally, ...] = ()

    def add(self, asked: Asked) -> None:
        self._newest.append(asked)
        for tally in self._tallies:
            tally.add(asked)

    def tally(self) -> Tally:
        """Counts from now on, until `close`."""
        opened = Tally()
        self._tallies = (*self._tallies, opened)
        return opened

    def close(self, tally: Tally) -> None:
        self._tallies = tuple(each for each in self._tallies if each is not tally)

    def lately(self, seconds: float, *, version: int | None = None) -> Span:
        """Of one version, or of all, as far as they are remembered."""
        since = self.now() - seconds
        newest_first = takewhile(lambda each: each.ended > since, reversed(self._newest.copy()))
        within = [each for each in newest_first if version in (None, each.version)]
        fates = Counter(each.fate for each in within)
        p99_ms = _p99_ms([each.seconds for each in within])
        return Span(len(within), fates[Fate.ANSWERED], fates[Fate.FAILED], fates[Fate.LATE], p99_ms)


def _p99_ms(seconds: Sequence[float]) -> float | None:
    return 1000 * sorted(seconds)[_rank(len(seconds)) - 1] if seconds else None


def _rank(count: int) -> int:
    """Of the 99th percentile among so many, from 1."""
    return math.ceil(0.99 * count)
