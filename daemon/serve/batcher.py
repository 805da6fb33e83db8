"""Inferences of everything that waits for the same version. Nothing that comes to an idle server waits for company: while one
inference runs, the next one gathers by itself, and texts of like length go together."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from daemon.core.errors import ExpiredError, NotReadyError, OverloadedError
from daemon.core.types import Prediction
from daemon.serve.buckets import buckets
from daemon.serve.router import Predictor, Tokens

Answer = Future[Sequence[Prediction]]

_AT_ONCE = 0.02  # seconds for which a caller may be held up by computing itself
_FORGET = 0.2  # share of the newest inference in how fast they are thought to be
_MOMENT = 0.005  # seconds at most that an inference waits for clients which were just answered
_MOMENT_SHARE = 0.05  # of the inference before


class Waiter(Protocol):
    """Whoever waits for an answer; a Future is one. All but `cancelled` are called on an inference thread, the first one first."""

    def set_running_or_notify_cancel(self) -> bool:
        """False when nobody waits any more: it is not computed then."""

    def cancelled(self) -> bool: ...
    def set_result(self, result: Sequence[Prediction], /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """Encoded texts for one predictor. `deadline` is a monotonic time: what still waits then is not computed."""

    predictor: Predictor
    rows: Sequence[Tokens]
    waiter: Waiter
    deadline: float = math.inf
    predictions: list[Prediction | None] = field(init=False)
    missing: int = field(init=False)  # texts without a prediction; negative once it has failed

    def __post_init__(self) -> None:
        self.missing = len(self.rows)
        self.predictions = [None] * self.missing

    def answer(self, index: int, prediction: Prediction) -> None:
        self.predictions[index] = prediction
        self.missing -= 1
        if not self.missing:
            self.waiter.set_result(self.predictions)  # type: ignore[arg-type]  # none is missing

    def fail(self, error: BaseException) -> None:
        if self.missing > 0:
            self.missing = -1
            self.waiter.set_exception(error)


class _Text(NamedTuple):
    request: Request
    place: int  # among the request's texts
    row: Tokens


class Batcher:
    """`submit` and `put` from any thread; `run` is the body of each inference thread, of which there may be several.

    A thread takes at most `max_batch` texts at once, unless a single request holds more; `max_queue` texts may wait.
    `on_batch` is told how many texts are in each inference.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[int], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._monotonic = monotonic
        self._waiting: deque[Request] = deque()
        self._texts = 0  # in all of `_waiting`
        self._threads = 0
        self._idle = 0  # of them, those with nothing to do
        self._pace = math.inf  # seconds a token
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._company = threading.Condition(lock)
        self._enough = 0  # requests in the queue for which `_company` is waited for
        self._closed = False

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return self._texts

    def submit(self, predictor: Predictor, texts: Sequence[str], *, deadline: float = math.inf) -> Answer:
        """A future of one prediction per text, or of ArtefactError or ExpiredError. Cancel it to be dropped from the queue.

        Raises OverloadedError when the queue is full, NotReadyError after `close`.
        """
        answer: Answer = Future()
        self.put(Request(predictor, predictor.encode(texts), answer, deadline))
        return answer

    def put(self, request: Request) -> None:
        """The same for texts that are encoded already and whoever waits for them."""
        with self._changed:
            if self._closed:
                raise NotReadyError("the server is stopping; ask another one")
            self._make_room(len(request.rows))
            self._waiting.append(request)
            self._texts += len(request.rows)
            self._changed.notify()
            if self._gathered():
                self._company.notify()

    def compute_here(self, request: Request) -> bool:
        """Answer it on the caller's thread, which saves waking another one; False when that would not be better.

        It is when the only inference thread has nothing to do and the caller is not held up for long.
        """
        tokens = sum(map(len, request.rows))
        if not (self._idle == self._threads == 1 and self._pace * tokens <= _AT_ONCE) or self._waiting or self._closed:
            return False
        self._compute([request])
        return True

    def run(self, beat: Callable[[], None], *, beat_every: float = 1.0) -> None:
        """Answer requests until closed and empty; calls `beat` at least every `beat_every` seconds while idle."""
        with self._changed:
            self._threads += 1
        while not (self._closed and not self._waiting):
            beat()
            self._gather(*self._compute(self._take(beat_every)))  # in no variable, which would keep a version in memory

    def close(self) -> None:
        """Take no more; what waits is still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._company.notify_all()

    def _compute(self, batch: Sequence[Request]) -> tuple[int, float]:
        """How many requests were answered, and in how many seconds."""
        began = self._monotonic()
        texts = [_Text(request, index, row) for request in batch for index, row in enumerate(request.rows)]
        for group in buckets([len(text.row) for text in texts], most=self._max_batch):
            together = [texts[place] for place in group]
            self._on_batch(len(together))
            started = self._monotonic()
            _infer(together)
            pace = (self._monotonic() - started) / sum(len(text.row) for text in together)
            self._pace = pace if self._pace == math.inf else (1 - _FORGET) * self._pace + _FORGET * pace
        return len(batch), self._monotonic() - began

    def _gather(self, answered: int, seconds: float) -> None:
        """Clients that were just answered often ask again at once. Without a moment for them to do so there would be two
        inferences by turns, each for half of the clients; one for all of them is faster and pads less. A client that is alone
        waits for nobody."""
        with self._changed:
            self._enough = answered + len(self._waiting)
            if answered and self._enough > 1 and not self._idle:
                self._company.wait_for(self._gathered, min(_MOMENT, _MOMENT_SHARE * seconds))
            self._enough = 0

    def _gathered(self) -> bool:
        return len(self._waiting) >= self._enough or self._texts >= self._max_batch or self._closed

    def _take(self, timeout: float) -> list[Request]:
        """The oldest request and whatever else waits for the same version, as far as it fits. Empty after `timeout`.

        Threads that are idle are left their share.
        """
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout)
            self._idle -= 1
            batch: list[Request] = []
            left: deque[Request] = deque()
            room = min(self._max_batch, math.ceil(self._texts / (1 + self._idle)))
            now = self._monotonic()
            while self._waiting and room > 0:
                request = self._waiting.popleft()
                fits = not batch or (request.predictor is batch[0].predictor and len(request.rows) <= room)
                if not fits:
                    left.append(request)
                    continue
                self._texts -= len(request.rows)
                if _wanted(request, now):
                    batch.append(request)
                    room -= len(request.rows)
            self._waiting.extendleft(reversed(left))
            return batch

    def _make_room(self, texts: int) -> None:
        if self._waiting and self._texts + texts > self._max_queue:
            self._waiting = deque(request for request in self._waiting if not request.waiter.cancelled())
            self._texts = _texts_in(self._waiting)
        if self._waiting and self._texts + texts > self._max_queue:
            raise OverloadedError(
                f"{self._texts} texts are waiting and the limit is {self._max_queue}; try again later"
            )


def _wanted(request: Request, now: float) -> bool:
    if not request.waiter.set_running_or_notify_cancel():
        return False
    if now >= request.deadline:
        request.fail(ExpiredError("the time for this request was over before its turn came; try again"))
        return False
    return True


def _texts_in(requests: Iterable[Request]) -> int:
    return sum(len(request.rows) for request in requests)


def _infer(texts: Sequence[_Text]) -> None:
    """Alone, each request of an inference that fails: one must not spoil the answers of others."""
    try:
        predictions = texts[0].request.predictor.infer([text.row for text in texts])
    except Exception as error:
        requests = {text.request: None for text in texts}
        for request in requests:
            if len(requests) == 1:
                request.fail(error)
            else:
                _infer([text for text in texts if text.request is request])
        return
    for text, prediction in zip(texts, predictions, strict=True):
        text.request.answer(text.place, prediction)
