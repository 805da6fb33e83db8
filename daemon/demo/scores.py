"""Numbers over a stream of answers. Pure."""

import math
from collections import deque
from collections.abc import Iterable, Sequence


class Prequential:
    """Accuracy over the newest `window` answers, each scored before its example could have been trained on."""

    def __init__(self, window: int) -> None:
        self._newest: deque[bool] = deque(maxlen=window)

    def add(self, correct: bool) -> float:
        """Returns the accuracy with this answer in the window, a share in [0, 1]."""
        self._newest.append(correct)
        return sum(self._newest) / len(self._newest)


def share(answers: Sequence[bool]) -> float | None:
    """Share of true ones; None of nothing."""
    return sum(answers) / len(answers) if answers else None


def percentile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least `q` (in (0, 1]) of all do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(math.ceil(q * len(ordered)), 1) - 1] if ordered else None


def within(moments: Sequence[float], *, of: Sequence[float], seconds: float) -> list[bool]:
    """Which of `moments` lie at most `seconds` from one of `of`."""
    return [any(abs(moment - other) <= seconds for other in of) for moment in moments]
