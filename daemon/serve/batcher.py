"""One inference at a time, of everything that waits for the same version. Nothing waits for company: while one batch runs,
the next one gathers by itself."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from daemon.core.errors import NotReadyError, OverloadedError
from daemon.core.types import Prediction
from daemon.serve.router import Predictor

Answer = Future[Sequence[Prediction]]


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    predictor: Predictor
    texts: Sequence[str]
    answer: Answer = field(default_factory=Future)


class Batcher:
    """`submit` from any thread; `run` is the body of the one inference thread.

    At most `max_batch` texts are given to a predictor at once, unless a single request holds more; `max_queue` texts may wait.
    `on_batch(texts, waiting)` is told the size of each inference and how many texts wait behind it.
    """

    def __init__(self, *, max_batch: int, max_queue: int, on_batch: Callable[[int, int], None]) -> None:
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._waiting: deque[_Request] = deque()
        self._texts = 0  # in all of `_waiting`
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, predictor: Predictor, texts: Sequence[str]) -> Answer:
        """A future of one prediction per text, or of ArtefactError. Cancel it to be dropped from the queue.

        Raises OverloadedError when the queue is full, NotReadyError after `close`.
        """
        request = _Request(predictor, texts)
        with self._changed:
            if self._closed:
                raise NotReadyError("the server is stopping; ask another one")
            self._make_room(len(texts))
            self._waiting.append(request)
            self._texts += len(texts)
            self._changed.notify()
        return request.answer

    def run(self, beat: Callable[[], None], *, beat_every: float = 1.0) -> None:
        """Answer requests until closed and empty; calls `beat` at least every `beat_every` seconds while idle."""
        while not (self._closed and not self._waiting):
            beat()
            batch = self._take(beat_every)
            if batch:
                self._on_batch(_texts_in(batch), self._texts)
                _answer(batch)

    def close(self) -> None:
        """Take no more; what waits is still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _take(self, timeout: float) -> list[_Request]:
        """The oldest request and whatever else waits for the same version, as far as it fits. Empty after `timeout`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout)
            batch: list[_Request] = []
            left: deque[_Request] = deque()
            room = self._max_batch
            for request in self._waiting:
                fits = not batch or (request.predictor is batch[0].predictor and len(request.texts) <= room)
                if not fits:
                    left.append(request)
                elif request.answer.set_running_or_notify_cancel():
                    batch.append(request)
                    room -= len(request.texts)
            self._set_waiting(left)
            return batch

    def _make_room(self, texts: int) -> None:
        if self._waiting and self._texts + texts > self._max_queue:
            self._set_waiting(deque(request for request in self._waiting if not request.answer.cancelled()))
        if self._waiting and self._texts + texts > self._max_queue:
            raise OverloadedError(
                f"{self._texts} texts are waiting and the limit is {self._max_queue}; try again later"
            )

    def _set_waiting(self, requests: deque[_Request]) -> None:
        self._waiting = requests
        self._texts = _texts_in(requests)


def _texts_in(requests: Iterable[_Request]) -> int:
    return sum(len(request.texts) for request in requests)


def _answer(batch: Sequence[_Request]) -> None:
    """Alone, each of a batch that fails: one request must not spoil the answers of others."""
    try:
        predictions = batch[0].predictor.predict([text for request in batch for text in request.texts])
    except Exception as error:
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
            return
        for request in batch:
            _answer([request])
        return
    start = 0
    for request in batch:
        request.answer.set_result(predictions[start : start + len(request.texts)])
        start += len(request.texts)
