import threading
from collections.abc import Sequence

import pytest

from daemon.core.errors import ArtefactError, ExpiredError, NotReadyError, OverloadedError
from daemon.core.types import Prediction
from daemon.serve.batcher import Batcher


class Echo:
    """Answers each text with itself; refuses texts that say so. A text has as many tokens as characters."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(character) for character in text] for text in texts]

    def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
        texts = ["".join(map(chr, row)) for row in rows]
        self.batches.append(texts)
        if "refuse" in texts:
            raise ArtefactError("refused")
        return [Prediction(text, 1.0, [1.0]) for text in texts]


class Bench:
    """A batcher whose inference thread runs when the test says so: here, once, until the queue is empty."""

    def __init__(self, *, max_batch: int = 4, max_queue: int = 8) -> None:
        self.seen: list[int] = []
        self.now = 0.0
        self.batcher = Batcher(
            max_batch=max_batch,
            max_queue=max_queue,
            on_batch=self.seen.append,
            monotonic=lambda: self.now,
        )

    def work(self) -> None:
        self.batcher.close()
        self.batcher.run(lambda: None)


def labels(predictions: Sequence[Prediction]) -> list[str]:
    return [prediction.label for prediction in predictions]


def test_what_waits_for_the_same_version_is_computed_together_and_answered_apart() -> None:
    bench, echo = Bench(), Echo()
    first, second = bench.batcher.submit(echo, ["a", "b"]), bench.batcher.submit(echo, ["c"])
    bench.work()
    assert echo.batches == [["a", "b", "c"]]
    assert (labels(first.result(0)), labels(second.result(0))) == (["a", "b"], ["c"])
    assert bench.seen == [3]


def test_versions_are_not_mixed_and_the_oldest_request_goes_first() -> None:
    bench, one, two = Bench(), Echo(), Echo()
    for predictor, text in ((one, "a"), (two, "b"), (one, "c")):
        bench.batcher.submit(predictor, [text])
    bench.work()
    assert (one.batches, two.batches) == ([["a", "c"]], [["b"]])
    assert bench.seen == [2, 1]


def test_no_inference_holds_more_than_its_limit_however_much_one_request_holds() -> None:
    bench, echo = Bench(max_batch=2), Echo()
    answers = [bench.batcher.submit(echo, texts) for texts in (["a"], ["b", "c"], ["d"], ["e", "f", "g"])]
    bench.work()
    assert echo.batches == [["a", "d"], ["b", "c"], ["e"], ["f", "g"]]
    assert [labels(answer.result(0)) for answer in answers] == [["a"], ["b", "c"], ["d"], ["e", "f", "g"]]


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    bench, echo = Bench(max_queue=2), Echo()
    kept = bench.batcher.submit(echo, ["a", "b"])
    with pytest.raises(OverloadedError, match="2 texts are waiting and the limit is 2"):
        bench.batcher.submit(echo, ["c"])
    bench.work()
    assert labels(kept.result(0)) == ["a", "b"]


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    bench, echo = Bench(max_queue=2), Echo()
    answer = bench.batcher.submit(echo, ["a", "b", "c"])
    bench.work()
    assert labels(answer.result(0)) == ["a", "b", "c"]


def test_a_cancelled_request_is_never_computed_and_gives_its_place_up() -> None:
    bench, echo = Bench(max_queue=2), Echo()
    bench.batcher.submit(echo, ["a", "b"]).cancel()
    answer = bench.batcher.submit(echo, ["c"])
    bench.work()
    assert labels(answer.result(0)) == ["c"]
    assert echo.batches == [["c"]]


def test_one_request_that_fails_does_not_spoil_the_others_of_its_batch() -> None:
    bench, echo = Bench(), Echo()
    good, bad = bench.batcher.submit(echo, ["a"]), bench.batcher.submit(echo, ["refuse"])
    bench.work()
    assert labels(good.result(0)) == ["a"]
    with pytest.raises(ArtefactError, match="refused"):
        bad.result(0)


def test_after_close_what_waits_is_answered_and_nothing_more_is_taken() -> None:
    bench, echo = Bench(), Echo()
    answer = bench.batcher.submit(echo, ["a"])
    bench.work()
    assert labels(answer.result(0)) == ["a"]
    with pytest.raises(NotReadyError):
        bench.batcher.submit(echo, ["b"])


def test_texts_of_very_different_length_are_computed_apart_and_a_request_of_both_is_answered_whole() -> None:
    bench, echo = Bench(), Echo()
    mixed, short = bench.batcher.submit(echo, ["x" * 90, "a"]), bench.batcher.submit(echo, ["b"])
    bench.work()
    assert echo.batches == [["a", "b"], ["x" * 90]]
    assert (labels(mixed.result(0)), labels(short.result(0))) == (["x" * 90, "a"], ["b"])
    assert bench.seen == [2, 1]


def test_what_waited_past_its_deadline_is_not_computed() -> None:
    bench, echo = Bench(), Echo()
    late, unhurried = bench.batcher.submit(echo, ["a"], deadline=5.0), bench.batcher.submit(echo, ["b"], deadline=5.1)
    bench.now = 5.0
    bench.work()
    with pytest.raises(ExpiredError, match="the time for this request was over"):
        late.result(0)
    assert labels(unhurried.result(0)) == ["b"]
    assert echo.batches == [["b"]]


def test_an_idle_thread_is_left_its_share() -> None:
    both_compute = threading.Barrier(2, timeout=5)

    class Slow(Echo):
        def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
            both_compute.wait()  # breaks unless two threads come here with something to do
            return super().infer(rows)

    bench, slow = Bench(), Slow()
    threads = [threading.Thread(target=bench.batcher.run, args=(lambda: None,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    answers = [bench.batcher.submit(slow, [text]) for text in "ab"]
    assert [labels(answer.result(5)) for answer in answers] == [["a"], ["b"]]
    bench.batcher.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


class Lasting(Echo):
    """An inference takes as long as it is said to by the bench's clock, and no time at all by the wall's."""

    def __init__(self, bench: Bench, seconds: float) -> None:
        super().__init__()
        self._bench = bench
        self._seconds = seconds
        self.begun = threading.Event()

    def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
        self.begun.set()
        self._bench.now += self._seconds
        return super().infer(rows)


def test_clients_that_were_answered_together_are_given_a_moment_to_ask_again_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("daemon.serve.batcher._MOMENT", 5.0)
    bench = Bench()
    lasting = Lasting(bench, 100.0)
    thread = threading.Thread(target=bench.batcher.run, args=(lambda: None,))
    together = [bench.batcher.submit(lasting, [text]) for text in "ab"]
    thread.start()
    assert [labels(answer.result(5)) for answer in together] == [["a"], ["b"]]
    lasting.begun.clear()
    first = bench.batcher.submit(lasting, ["c"])
    assert not lasting.begun.wait(0.01)
    second = bench.batcher.submit(lasting, ["d"])
    assert (labels(first.result(4)), labels(second.result(4))) == (["c"], ["d"])
    bench.batcher.close()
    thread.join(5)
    assert not thread.is_alive()
    assert lasting.batches == [["a", "b"], ["c", "d"]]


def test_a_client_that_is_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.serve.batcher._MOMENT", 1e6)
    bench = Bench()
    lasting = Lasting(bench, 1e8)
    thread = threading.Thread(target=bench.batcher.run, args=(lambda: None,))
    thread.start()
    for text in "abc":
        assert labels(bench.batcher.submit(lasting, [text]).result(5)) == [text]
    bench.batcher.close()
    thread.join(5)
    assert not thread.is_alive()
