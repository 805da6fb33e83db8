"""Compares a version with the champion on live requests, unheard: its answers are counted and thrown away.

A request is never held up: what it leaves here is taken up only while no request is out, on a thread that yields to all others,
and is dropped when too much waits.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from daemon.core.types import Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.router import Slot

MOST_WAITING = 64  # requests
_LOOK_AGAIN = 0.002  # seconds, while requests are out


@dataclass(frozen=True, slots=True)
class Comparison:
    """Texts since this version became the shadow: on how many it agreed with the champion, and what else became of them."""

    version: int
    agreed: int = 0
    differed: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class _Overheard:
    slot: Slot
    texts: Sequence[str]
    predictions: Sequence[Prediction]


class Shadow:
    """`overhear` from any thread; `run` is the body of the shadow's own thread. `busy` says whether requests are out."""

    def __init__(self, metrics: ServerMetrics, busy: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._busy = busy
        self._waiting: deque[_Overheard] = deque()
        self._something = threading.Event()
        self._counting = threading.Lock()
        self._comparison: Comparison | None = None

    @property
    def comparison(self) -> Comparison | None:
        return self._comparison

    def overhear(self, slot: Slot, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._count(slot, dropped=len(texts))
            return
        self._waiting.append(_Overheard(slot, texts, predictions))
        self._something.set()

    def run(self, stop: threading.Event, beat: Callable[[], None], *, beat_every: float = 1.0) -> None:
        while not stop.is_set():
            beat()
            if not self._waiting and not self._something.wait(beat_every):
                continue
            self._something.clear()
            if self._busy():
                time.sleep(_LOOK_AGAIN)
                self._something.set()
            elif self._waiting:
                self._compare(self._waiting.popleft())

    def _compare(self, overheard: _Overheard) -> None:
        slot, texts = overheard.slot, overheard.texts
        if not slot.borrow():
            self._count(slot, dropped=len(texts))
            return
        try:
            own = slot.predictor.predict(texts)
        except Exception:  # whatever it is, it is the shadow's and nobody waits for it
            self._count(slot, failed=len(texts))
        else:
            pairs = zip(own, overheard.predictions, strict=True)
            agreed = sum(mine.label == theirs.label for mine, theirs in pairs)
            self._count(slot, agreed=agreed, differed=len(texts) - agreed)
        finally:
            slot.give_back()

    def _count(self, slot: Slot, **texts: int) -> None:
        number = slot.version.number
        with self._counting:
            before = self._comparison
            if before is None or before.version != number:
                before = Comparison(number)
            self._comparison = replace(before, **{name: getattr(before, name) + more for name, more in texts.items()})
        for outcome, more in texts.items():
            if more:
                self._metrics.shadow_texts.labels(outcome).inc(more)
