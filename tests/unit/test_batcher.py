from collections.abc import Sequence

import pytest

from daemon.core.errors import ArtefactError, NotReadyError, OverloadedError
from daemon.core.types import Prediction
from daemon.serve.batcher import Batcher


class Echo:
    """Answers each text with itself; refuses texts that say so."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        self.batches.append(list(texts))
        if "refuse" in texts:
            raise ArtefactError("refused")
        return [Prediction(text, 1.0, [1.0]) for text in texts]


class Bench:
    """A batcher whose inference thread runs when the test says so: here, once, until the queue is empty."""

    def __init__(self, *, max_batch: int = 4, max_queue: int = 8) -> None:
        self.seen: list[tuple[int, int]] = []
        self.batcher = Batcher(
            max_batch=max_batch, max_queue=max_queue, on_batch=lambda texts, waiting: self.seen.append((texts, waiting))
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
    assert bench.seen == [(3, 0)]


def test_versions_are_not_mixed_and_the_oldest_request_goes_first() -> None:
    bench, one, two = Bench(), Echo(), Echo()
    for predictor, text in ((one, "a"), (two, "b"), (one, "c")):
        bench.batcher.submit(predictor, [text])
    bench.work()
    assert (one.batches, two.batches) == ([["a", "c"]], [["b"]])
    assert bench.seen == [(2, 1), (1, 0)]


def test_a_batch_stays_within_its_limit_unless_one_request_holds_more() -> None:
    bench, echo = Bench(max_batch=2), Echo()
    for texts in (["a"], ["b", "c"], ["d"], ["e", "f", "g"]):
        bench.batcher.submit(echo, texts)
    bench.work()
    assert echo.batches == [["a", "d"], ["b", "c"], ["e", "f", "g"]]


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
