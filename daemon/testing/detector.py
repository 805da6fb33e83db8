"""A drift detector that says what it was told to."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from daemon.core.errors import DriftError
from daemon.core.types import ColumnDrift, DriftTest, WindowRow

Scores = Mapping[str, float]


class ScriptedDetector:
    """Each call gives the next of `script`: scores by column, or an error to raise. A column left out is unknown.

    When the script is at its end its last entry is repeated.
    """

    def __init__(self, script: Iterable[Scores | DriftError]) -> None:
        self._script = deque(script)
        self.windows: list[tuple[int, int]] = []
        """How many rows each call was given: reference, current."""

    def detect(
        self, reference: Sequence[WindowRow], current: Sequence[WindowRow], tests: Sequence[DriftTest]
    ) -> Sequence[ColumnDrift]:
        self.windows.append((len(reference), len(current)))
        scores = self._script.popleft() if len(self._script) > 1 else self._script[0]
        if isinstance(scores, DriftError):
            raise scores
        return [test.measured(scores.get(test.column, math.nan)) for test in tests]
