"""An event loop's side of the batcher: await an answer, without a thread of its own and with few wake-ups."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from daemon.core.errors import ExpiredError, UnavailableError, UsageError
from daemon.core.types import Prediction
from daemon.serve.batcher import Batcher, Request
from daemon.serve.router import Predictor

Gone = Callable[[], Coroutine[Any, Any, None]]  # returns when nobody waits for the answer any more

_LOOK_AFTER = 0.1  # seconds until it is worth looking whether a client has gone
_LONG = 8192  # characters in a request; encoding more would hold the loop up


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Desk:
    """Hands requests of one event loop to a batcher and their answers back. Used on that loop alone."""

    def __init__(self, batcher: Batcher, loop: asyncio.AbstractEventLoop) -> None:
        self._batcher = batcher
        self.loop = loop
        self._answers: deque[tuple[_Waiter, Sequence[Prediction] | BaseException]] = deque()
        self._called = False
        self._arrived: list[Request] = []

    async def ask(
        self, predictor: Predictor, texts: Sequence[str], *, timeout: float, gone: Gone
    ) -> Sequence[Prediction]:
        """One prediction per text, within `timeout` seconds. Who is late, cancelled or gone gives the place in the queue up.

        Raises what `Batcher.submit` does, ExpiredError, or ClientGone.
        """
        deadline = time.monotonic() + timeout
        if sum(map(len, texts)) > _LONG:
            rows = await self.loop.run_in_executor(None, predictor.encode, texts)
        else:
            rows = predictor.encode(texts)
        waiter = _Waiter(self)
        if not self._arrived:
            self.loop.call_soon(self._dispatch)
        self._arrived.append(Request(predictor, rows, waiter, deadline))
        return await waiter.answer(deadline, timeout, gone)

    def _dispatch(self) -> None:
        """All that has arrived by now. A request that comes alone to an idle server is answered without waking a thread."""
        arrived, self._arrived = self._arrived, []
        if len(arrived) == 1 and self._computed_here(arrived[0]):
            return
        for request in arrived:
            try:
                self._batcher.put(request)
            except UnavailableError as error:
                request.fail(error)

    def _computed_here(self, request: Request) -> bool:
        self._called = True  # the loop need not be woken up for what it does itself
        computed = self._batcher.compute_here(request)
        self._hand_over()
        return computed

    def deliver(self, waiter: "_Waiter", answer: Sequence[Prediction] | BaseException) -> None:
        """From any thread. One wake-up serves all answers that are there by then."""
        if waiter.future.done():  # nobody waits any more, and at a stop the loop may be closed already
            return
        self._answers.append((waiter, answer))
        if not self._called:
            self._called = True
            self.loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._called = False
        while self._answers:
            waiter, answer = self._answers.popleft()
            if waiter.future.done():
                continue
            if isinstance(answer, BaseException):
                waiter.future.set_exception(answer)
            else:
                waiter.future.set_result(answer)


class _Waiter:
    """One request: implements `batcher.Waiter`. Its future is done as soon as nobody waits any more."""

    __slots__ = ("_desk", "_timer", "_watch", "future")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watch: asyncio.Task[None] | None = None
        self.future: asyncio.Future[Sequence[Prediction]] = desk.loop.create_future()

    def set_running_or_notify_cancel(self) -> bool:
        return not self.future.done()

    def cancelled(self) -> bool:
        return self.future.done()

    def set_result(self, result: Sequence[Prediction], /) -> None:
        self._desk.deliver(self, result)

    def set_exception(self, error: BaseException, /) -> None:
        self._desk.deliver(self, error)

    async def answer(self, deadline: float, timeout: float, gone: Gone) -> Sequence[Prediction]:
        self._timer = self._desk.loop.call_later(min(timeout, _LOOK_AFTER), self._look, deadline, timeout, gone)
        try:
            return await self.future
        finally:
            self._timer.cancel()
            if self._watch is not None:
                self._watch.cancel()

    def _look(self, deadline: float, timeout: float, gone: Gone) -> None:
        """Most answers are there before this is called, and cost no task that watches."""
        left = deadline - time.monotonic()
        if self.future.done():
            return
        if left <= 0:
            self.future.set_exception(ExpiredError(f"no answer within {timeout:g} s; try again"))
            return
        self._timer = self._desk.loop.call_later(left, self._look, deadline, timeout, gone)
        if self._watch is None:
            self._watch = self._desk.loop.create_task(self._leave_when(gone))

    async def _leave_when(self, gone: Gone) -> None:
        await gone()
        if not self.future.done():
            self.future.set_exception(ClientGone())


def timeout_of(asked: str | None, most: float) -> float:
    """Seconds to answer within: what the client asked for in milliseconds, at most ours. Raises UsageError."""
    if asked is None:
        return most
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked)):
        raise UsageError(f"a timeout is a whole number of milliseconds from 1; got '{asked[:20]}'")
    return min(most, int(asked) / 1000)
