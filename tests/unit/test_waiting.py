"""An event loop's side of the batcher: who computes, who waits how long, and whose place in the queue is given up."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from daemon.core.errors import ArtefactError, ExpiredError, OverloadedError, UsageError
from daemon.core.types import Prediction
from daemon.serve.batcher import Batcher
from daemon.serve.waiting import ClientGone, Desk, timeout_of


class Echo:
    """Answers each text with itself, and remembers on which thread what was done."""

    def __init__(self) -> None:
        self.encoded_on: list[str] = []
        self.computed: list[tuple[list[str], str]] = []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.encoded_on.append(threading.current_thread().name)
        return [[ord(character) for character in text] for text in texts]

    def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
        texts = ["".join(map(chr, row)) for row in rows]
        self.computed.append((texts, threading.current_thread().name))
        if "refuse" in texts:
            raise ArtefactError("refused")
        return [Prediction(text, 1.0, [1.0]) for text in texts]


class Bench:
    def __init__(self, *, max_queue: int = 8, pace: float = 0.0) -> None:
        """`pace`: seconds each look at the clock takes, and so each inference."""
        self._now, self._pace = 0.0, pace
        self.batcher = Batcher(max_batch=8, max_queue=max_queue, on_batch=lambda *_: None, monotonic=self._clock)
        self.echo = Echo()

    def _clock(self) -> float:
        self._now += self._pace
        return self._now

    @contextmanager
    def inferring(self, threads: int = 1) -> Iterator[None]:
        running = [
            threading.Thread(target=self.batcher.run, args=(lambda: None,), name="inference") for _ in range(threads)
        ]
        for thread in running:
            thread.start()
        self.batcher.submit(self.echo, ["warm"]).result(5)  # how fast it is is known from now on
        while self.batcher._idle < threads:
            pass
        try:
            yield
        finally:
            self.batcher.close()
            for thread in running:
                thread.join(5)

    def computed_last(self) -> tuple[list[str], str]:
        return self.echo.computed[-1]

    def ask(self, *requests: Sequence[str], timeout: float = 5.0) -> list[Sequence[Prediction] | BaseException]:
        """All at once, on a loop of this thread."""

        async def ask_all() -> list[Sequence[Prediction] | BaseException]:
            desk = Desk(self.batcher, asyncio.get_running_loop())
            waiting = (desk.ask(self.echo, texts, timeout=timeout, gone=asyncio.Event().wait) for texts in requests)
            return await asyncio.gather(*waiting, return_exceptions=True)

        return asyncio.run(ask_all())


HERE = threading.current_thread().name


def test_who_comes_alone_to_an_idle_server_is_answered_without_another_thread() -> None:
    bench = Bench()
    with bench.inferring():
        assert bench.ask(["a", "b"]) == [[Prediction("a", 1.0, [1.0]), Prediction("b", 1.0, [1.0])]]
        assert bench.computed_last() == (["a", "b"], HERE)


def test_who_comes_with_others_is_computed_with_them_by_the_inference_thread() -> None:
    bench = Bench()
    with bench.inferring():
        answers = bench.ask(["a"], ["b"], ["refuse"])
    assert answers[:2] == [[Prediction("a", 1.0, [1.0])], [Prediction("b", 1.0, [1.0])]]
    assert isinstance(answers[2], ArtefactError)
    assert {thread for texts, thread in bench.echo.computed if texts != ["warm"]} == {"inference"}


@pytest.mark.parametrize(("pace", "threads"), [(0.1, 1), (0.0, 2)])
def test_the_event_loop_is_not_held_up_by_slow_inference_nor_where_there_are_threads_enough(
    pace: float, threads: int
) -> None:
    bench = Bench(pace=pace)
    with bench.inferring(threads):
        bench.ask(["a"])
        assert bench.computed_last() == (["a"], "inference")


def test_long_texts_are_encoded_beside_the_event_loop() -> None:
    bench = Bench()
    with bench.inferring():
        bench.ask(["short"])
        bench.ask(["long" * 3000])
    assert bench.echo.encoded_on[-2] == HERE != bench.echo.encoded_on[-1]


def test_a_full_queue_is_said_to_those_that_found_no_room() -> None:
    bench = Bench(max_queue=1)  # and nobody computes
    kinds = [type(answer) for answer in bench.ask(["a"], ["b"], timeout=0.02)]
    assert kinds == [ExpiredError, OverloadedError]
    with bench.inferring():
        pass
    assert bench.echo.computed == [(["warm"], "inference")], "what was given up is not computed"


def test_a_client_that_leaves_gives_its_place_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.serve.waiting._LOOK_AFTER", 0.01)
    bench = Bench()

    async def ask() -> None:
        desk = Desk(bench.batcher, asyncio.get_running_loop())
        await desk.ask(bench.echo, ["a"], timeout=5, gone=lambda: asyncio.sleep(0))

    with pytest.raises(ClientGone):
        asyncio.run(ask())
    with bench.inferring():
        pass
    assert bench.echo.computed == [(["warm"], "inference")]


def test_a_client_may_ask_for_less_time_than_ours_and_not_for_more() -> None:
    assert timeout_of(None, 10.0) == 10.0
    assert timeout_of("250", 10.0) == 0.25
    assert timeout_of("60000", 10.0) == 10.0
    for asked in ("0", "-1", "1.5", "soon", "", "٣", "9" * 30):
        with pytest.raises(UsageError, match="whole number of milliseconds"):
            timeout_of(asked, 10.0)
