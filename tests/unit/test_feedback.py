"""Answers and labels on their way to a sink that works, is slow, or fails."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.core.errors import NotReadyError, OverloadedError, UnavailableError
from daemon.core.states import HalfKind
from daemon.core.types import Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.feedback import Feedback, FileSink
from daemon.serve.requests import Label
from tests.artefacts import version_of

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
UP = Prediction("up", 0.75, [0.25, 0.75])


@dataclass
class Written:
    """A sink that keeps what it is given; `failing` makes it refuse."""

    records: list[tuple[HalfKind, str, dict[str, object]]] = field(default_factory=list)
    failing: bool = False
    closed: bool = False

    def write(self, kind: HalfKind, keys: Sequence[str], records: Sequence[bytes]) -> None:
        if self.failing:
            raise UnavailableError("the disk is full")
        self.records += [(kind, key, json.loads(record)) for key, record in zip(keys, records, strict=True)]

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, *, share: float = 1.0, capacity: int = 10, chance: Callable[[], float] = lambda: 0.5) -> None:
        self.sink, self.metrics = Written(), ServerMetrics()
        self.feedback = Feedback(
            self.sink, share=share, capacity=capacity, clock=lambda: NOON, metrics=self.metrics, chance=chance
        )

    def predict(self, id: str, *texts: str) -> None:
        self.feedback.predicted(id, version_of(7), texts, [UP] * len(texts))

    def finish(self) -> None:
        self.feedback.close()
        self.feedback.run(lambda: None)

    @property
    def dropped(self) -> float:
        return self.metrics.feedback_dropped._value.get()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.feedback.close()


def test_an_answer_and_its_label_are_records_that_name_each_other(bench: Bench) -> None:
    bench.predict("a", "good")
    bench.predict("b", "good", "bad")
    label = bench.feedback.labelled([Label("a", "down")])
    bench.finish()
    label.result(0)
    assert bench.sink.closed
    answered = {
        "model": "tweets",
        "version": 7,
        "prediction": "up",
        "confidence": 0.75,
        "occurred_at": "2030-01-01T12:00:00Z",
    }
    assert [record for kind, _, record in bench.sink.records if kind is HalfKind.PREDICTION] == [
        {"id": "a", "text": "good", **answered},
        {"id": "b-0", "text": "good", **answered},
        {"id": "b-1", "text": "bad", **answered},
    ]
    assert bench.sink.records[0] == (
        HalfKind.LABEL,
        "a",
        {"id": "a", "label": "down", "occurred_at": "2030-01-01T12:00:00Z"},
    )


def test_a_full_queue_drops_answers_and_counts_them_and_never_waits(bench: Bench) -> None:
    for number in range(12):
        bench.predict(f"r{number}", "good")
    assert bench.dropped == 2
    bench.finish()
    assert len(bench.sink.records) == 10
    bench.predict("too late", "good")
    assert bench.dropped == 3


def test_a_share_of_the_requests_is_logged_each_whole() -> None:
    rolls = iter([0.0, 0.31, 0.29])
    bench = Bench(share=0.3, chance=lambda: next(rolls))
    for id in "abc":
        bench.predict(id, "good", "bad")
    bench.finish()
    assert [key for _, key, _ in bench.sink.records] == ["a-0", "a-1", "c-0", "c-1"]


def test_a_label_that_cannot_be_written_is_the_sender_s_to_send_again(bench: Bench) -> None:
    bench.sink.failing = True
    label = bench.feedback.labelled([Label("a", "up")])
    bench.finish()
    with pytest.raises(UnavailableError, match="disk is full"):
        label.result(0)
    with pytest.raises(NotReadyError):
        bench.feedback.labelled([Label("a", "up")])


def test_too_many_waiting_labels_are_refused(bench: Bench) -> None:
    bench.feedback.labelled([Label(str(number), "up") for number in range(10)])
    with pytest.raises(OverloadedError):
        bench.feedback.labelled([Label("one more", "up")])


def test_answers_wait_for_a_sink_that_fails_for_a_while(bench: Bench) -> None:
    bench.sink.failing = True
    bench.predict("a", "good")
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:  # the first write has failed
            bench.sink.failing = False
            bench.predict("b", "good")
        if beats == 3:
            bench.feedback.close()

    bench.feedback.run(beat, retry_after=0.001)
    assert [key for _, key, _ in bench.sink.records] == ["a", "b"]
    assert bench.dropped == 0


def test_what_cannot_be_written_at_the_end_is_counted(bench: Bench) -> None:
    bench.sink.failing = True
    bench.predict("a", "good", "bad")
    bench.finish()
    assert (bench.sink.records, bench.dropped, bench.sink.closed) == ([], 2, True)


# --- files ---


def test_files_rotate_by_size_and_the_oldest_go(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "feedback", max_file=100, keep=3)
    for number in range(12):
        sink.write(HalfKind.PREDICTION, [str(number)], [b'{"n": %2d, "x": "%s"}' % (number, b"x" * 25)])
    sink.write(HalfKind.LABEL, ["a"], [b"{}"])
    files = sorted(path.name for path in (tmp_path / "feedback").iterdir())
    assert files == ["labels.jsonl", "predictions.jsonl", "predictions.jsonl.1", "predictions.jsonl.2"]
    kept = [
        json.loads(line)["n"]
        for name in reversed(files[1:])
        for line in (tmp_path / "feedback" / name).read_text().splitlines()
    ]
    assert kept == list(range(12))[-len(kept) :] and len(kept) >= 5
    assert all(path.stat().st_size <= 100 for path in (tmp_path / "feedback").iterdir())
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "feedback").iterdir()} == {0o600}


def test_one_file_is_one_file(tmp_path: Path) -> None:
    sink = FileSink(tmp_path, max_file=10, keep=1)
    sink.write(HalfKind.LABEL, ["a"], [b"first record"])
    sink.write(HalfKind.LABEL, ["b"], [b"second record"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("labels.jsonl", "second record\n")]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "feedback").write_text("a file")
    with pytest.raises(UnavailableError, match=r"predictions\.jsonl cannot be written"):
        FileSink(tmp_path / "feedback", max_file=10, keep=1).write(HalfKind.PREDICTION, ["a"], [b"{}"])
