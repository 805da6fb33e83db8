"""What was answered, and the labels that clients learn later, for training: to a local file or a Kafka topic.

No request waits for a prediction to be written: it is queued, and dropped and counted when the queue is full. A label is waited
for: whoever sends it hears when it is durable.
"""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from daemon.core.errors import NotReadyError, OverloadedError, UnavailableError
from daemon.core.ports import Clock
from daemon.core.states import HalfKind
from daemon.core.types import ModelVersion, Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.requests import GOLDEN_ID, Label, text_ids

log = structlog.get_logger(__name__)

_AT_ONCE = 1000  # records
_COMPLAIN_EVERY = 60.0  # seconds


class Sink(Protocol):
    """Where records go, one JSON object each. Used by one thread."""

    def write(self, kind: HalfKind, keys: Sequence[str], records: Sequence[bytes]) -> None:
        """Durable on return; `keys` are the records' ids. Raises UnavailableError; some may have been written then."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Predicted:
    id: str
    version: ModelVersion
    text: str
    prediction: Prediction
    at: datetime

    def record(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.version.model,
            "version": self.version.number,
            "text": self.text,
            "prediction": self.prediction.label,
            "confidence": self.prediction.confidence,
            "occurred_at": self.at,
        }


@dataclass(frozen=True, slots=True)
class _Labelled:
    labels: Sequence[Label]
    at: datetime
    written: "Future[None]" = field(default_factory=Future)

    def records(self) -> list[dict[str, Any]]:
        return [{"id": label.id, "label": label.label, "occurred_at": self.at} for label in self.labels]


class Feedback:
    """`predicted` and `labelled` from any thread; `run` is the body of the one that writes."""

    def __init__(
        self,
        sink: Sink,
        *,
        share: float,
        capacity: int,
        clock: Clock,
        metrics: ServerMetrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sink = sink
        self._share = share
        self._capacity = capacity
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        self._predictions: deque[_Predicted] = deque()
        self._labels: deque[_Labelled] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._complain_at = 0.0

    def predicted(
        self, id: str, version: ModelVersion, texts: Sequence[str], predictions: Sequence[Prediction]
    ) -> None:
        """Queue a share of all requests, each with all its texts."""
        if self._chance() >= self._share or id.startswith(GOLDEN_ID):
            return
        at = self._clock()
        with self._changed:
            if self._closed or len(self._predictions) + len(texts) > self._capacity:
                self._metrics.feedback_dropped.inc(len(texts))
                return
            self._predictions.extend(
                _Predicted(*answered, at)
                for answered in zip(text_ids(id, len(texts)), [version] * len(texts), texts, predictions, strict=True)
            )
            self._changed.notify()

    def labelled(self, labels: Sequence[Label]) -> "Future[None]":
        """Done when they are durable; UnavailableError when they could not be written. Raises OverloadedError, NotReadyError."""
        waiting = _Labelled(labels, self._clock())
        with self._changed:
            if self._closed:
                raise NotReadyError("the server is stopping; send the labels to another one")
            if sum(len(other.labels) for other in self._labels) + len(labels) > self._capacity:
                raise OverloadedError(f"{self._capacity} labels are waiting to be written; try again later")
            self._labels.append(waiting)
            self._changed.notify()
        return waiting.written

    def run(self, beat: Callable[[], None], *, beat_every: float = 1.0, retry_after: float = 1.0) -> None:
        """Write until closed and empty; what cannot be written after that is dropped and counted."""
        while True:
            beat()
            with self._changed:
                self._changed.wait_for(lambda: self._predictions or self._labels or self._closed, beat_every)
                if self._closed and not self._predictions and not self._labels:
                    break
            self._write_labels()
            if not self._write_predictions():
                self._wait_or_give_up(retry_after)
        self._sink.close()

    def close(self) -> None:
        """Take no more; what waits is still written."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _write_labels(self) -> None:
        while self._labels:
            waiting = self._labels.popleft()
            if not waiting.written.set_running_or_notify_cancel():
                continue
            try:
                self._write(HalfKind.LABEL, waiting.records())
            except UnavailableError as error:
                waiting.written.set_exception(error)
            else:
                waiting.written.set_result(None)

    def _write_predictions(self) -> bool:
        """False when they could not be written; they wait on, then."""
        with self._changed:
            oldest = [self._predictions[index] for index in range(min(_AT_ONCE, len(self._predictions)))]
        if oldest:
            try:
                self._write(HalfKind.PREDICTION, [predicted.record() for predicted in oldest])
            except UnavailableError as error:
                self._complain(error)
                return False
        with self._changed:
            for _ in oldest:
                self._predictions.popleft()
        return True

    def _write(self, kind: HalfKind, records: Sequence[dict[str, Any]]) -> None:
        self._sink.write(kind, [record["id"] for record in records], [msgspec.json.encode(each) for each in records])
        self._metrics.feedback_records.labels(kind).inc(len(records))

    def _wait_or_give_up(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._labels, timeout)
            if self._closed:
                self._metrics.feedback_dropped.inc(len(self._predictions))
                self._predictions.clear()

    def _complain(self, error: UnavailableError) -> None:
        if time.monotonic() >= self._complain_at:
            self._complain_at = time.monotonic() + _COMPLAIN_EVERY
            log.warning(
                f"answers are not logged for now; they wait, and answering goes on: {error}", action="feedback_failed"
            )


class FileSink:
    """predictions.jsonl and labels.jsonl in a folder, readable by the owner only; NAME.1 is the one before, and so on."""

    def __init__(self, folder: Path, *, max_file: int, keep: int) -> None:
        self._folder = folder
        self._max_file = max_file
        self._keep = keep

    def write(self, kind: HalfKind, keys: Sequence[str], records: Sequence[bytes]) -> None:
        path = self._folder / f"{kind}s.jsonl"
        content = b"".join(record + b"\n" for record in records)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size + len(content) > self._max_file:
                self._rotate(path)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fdatasync(file.fileno())
        except OSError as error:
            raise UnavailableError(
                f"{path} cannot be written: {error.strerror or error}; see server.feedback"
            ) from error

    def close(self) -> None:
        pass

    def _rotate(self, path: Path) -> None:
        for number in range(self._keep - 1, 0, -1):
            before = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            if before.exists():
                before.replace(path.with_name(f"{path.name}.{number}"))
        path.unlink(missing_ok=True)  # of those kept there is only one
