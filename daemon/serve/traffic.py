"""What requests met lately: how long each version's answers took and which failed. What a swap report is written from."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

REMEMBERED = 8192  # requests


class Answered(NamedTuple):
    """`ended` and `seconds` by a monotonic clock; `failed`: by our fault, not the client's and not for want of room."""

    ended: float
    seconds: float
    version: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Span:
    """The requests that ended within some time. `p99_ms` is None when there were none."""

    requests: int
    failed: int
    p99_ms: float | None


class Traffic:
    """A ring of the newest requests. `add` costs a request well under a microsecond and may be called from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, *, remembered: int = REMEMBERED) -> None:
        self.now = monotonic
        self._ring: deque[Answered] = deque(maxlen=remembered)
        self.add = self._ring.append

    def between(self, start: float, end: float, *, version: int | None = None) -> Span:
        """Of one version, or of all. Older requests than the ring holds are forgotten."""
        newest_first = takewhile(lambda each: each.ended > start, reversed(self._ring.copy()))
        within = [each for each in newest_first if each.ended <= end and version in (None, each.version)]
        return Span(len(within), sum(each.failed for each in within), _p99_ms([each.seconds for each in within]))


def _p99_ms(seconds: Sequence[float]) -> float | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return 1000 * ordered[math.ceil(0.99 * len(ordered)) - 1]
