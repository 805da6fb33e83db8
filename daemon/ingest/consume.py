"""The loop that takes the stream in, and the one place that knows the order in which it becomes durable.

    poll -> decode -> one store transaction (examples, dead letters, gaps, next offsets) -> tell the broker

The store's offsets are the truth. After anything went wrong we forget where we stood, ask the store, and start the source
there again: a record that comes twice lies below the store's next offset and is dropped, so nothing is lost or stored twice.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from daemon.core.errors import OutcomeUnknownError, RelearndError, SourceError, StaleBatchError
from daemon.core.ports import Clock, Source, Store
from daemon.core.states import GapReason
from daemon.core.types import Advance, Batch, DeadLetter, Example, Gap, Record, Reject, TopicPartition
from daemon.ingest.decode import Decoder
from daemon.runtime.failpoints import failpoint
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

FIRST_BACKOFF = 0.25  # seconds
LONGEST_BACKOFF = 10.0


@dataclass(frozen=True, slots=True)
class Assembly:
    """A batch ready for the store, and how many records were left out because the store has them already."""

    batch: Batch
    redelivered: int


def assemble(
    records: Sequence[Record], next_offsets: Mapping[TopicPartition, int], decoder: Decoder, now: datetime
) -> Assembly:
    """Every offset from the store's next one up to the last record goes into exactly one of the batch's three lists."""
    examples: list[Example] = []
    dead_letters: list[DeadLetter] = []
    gaps: list[Gap] = []
    reached = dict(next_offsets)
    redelivered = 0
    for record in records:
        position = record.position
        partition = position.topic_partition
        expected = reached.get(partition, position.offset)
        if position.offset < expected:
            redelivered += 1
            continue
        if position.offset > expected:
            gaps.append(Gap(*partition, expected, position.offset, GapReason.NOT_RETURNED))
        decoded = decoder.decode(record, now)
        if isinstance(decoded, Reject):
            dead_letters.append(_dead_letter(record, decoded, now))
        else:
            examples.append(decoded)
        reached[partition] = position.offset + 1
    return Assembly(Batch(examples, dead_letters, gaps, _advances(next_offsets, reached)), redelivered)


def deleted(first_left: Mapping[TopicPartition, int], next_offsets: Mapping[TopicPartition, int]) -> Batch:
    """What the broker deleted before we read it, as gaps."""
    gaps = [
        Gap(*partition, next_offsets[partition], offset, GapReason.RETENTION)
        for partition, offset in first_left.items()
    ]
    return Batch([], [], gaps, _advances(next_offsets, first_left))


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: doubling, with jitter so that many learners do not call together."""
    longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 16))
    return longest * rng.uniform(0.5, 1.0)


class Ingest:
    """Owns the source and the writing of the stream; used by one thread, but for `lag` and replacing `decoder`."""

    def __init__(
        self,
        source: Source,
        store: Store,
        decoder: Decoder,
        *,
        clock: Clock,
        metrics: LearnerMetrics,
        rng: random.Random,
        poll_timeout: float,
    ) -> None:
        """`poll_timeout` in seconds: how long a round waits for records, and how fast a stop is noticed."""
        self.decoder = decoder
        self._source = source
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._poll_timeout = poll_timeout
        self._lag: Mapping[TopicPartition, int] = {}
        self._next_offsets: dict[TopicPartition, int] | None = None  # None: ask the store before going on

    def run(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        """Rounds until `stop`, with backoff while the stream or a commit fails. `beat` once a round; StoreError ends it."""
        failures = 0
        while not stop.is_set():
            beat()
            try:
                self.step()
                failures = 0
            except (SourceError, StaleBatchError, OutcomeUnknownError) as error:
                failures += 1
                seconds = backoff(failures, self._rng)
                log.warning(
                    f"ingest starts again from the store's offsets in {seconds:.1f} s: {error}",
                    action="ingest_restart",
                    failures=failures,
                )
                stop.wait(seconds)

    def step(self) -> int:
        """One round; returns how many examples and dead letters it stored.

        SourceError, StaleBatchError and OutcomeUnknownError are counted and raised; the next round then starts from the store.
        """
        try:
            return self._round()
        except (SourceError, StaleBatchError, OutcomeUnknownError) as error:
            self._next_offsets = None
            self._count(error)
            raise

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records not yet read, as of the newest round; from any thread."""
        return self._lag

    def _round(self) -> int:
        next_offsets = self._start() if self._next_offsets is None else self._next_offsets
        records = self._source.poll(self._poll_timeout)
        assembly = assemble(records, next_offsets, self.decoder, self._clock())
        if assembly.redelivered:
            log.info(
                f"dropped {assembly.redelivered} records that the store has already",
                action="redelivered",
                records=assembly.redelivered,
            )
        self._store_batch(assembly.batch, next_offsets)
        self._lag = self._source.lag()
        return len(assembly.batch)

    def _start(self) -> dict[TopicPartition, int]:
        next_offsets = dict(self._store.next_offsets())
        first_left = self._source.start(next_offsets)
        self._next_offsets = next_offsets
        for partition, offset in first_left.items():
            log.error(
                f"{partition.topic}[{partition.partition}]: the broker deleted offsets {next_offsets[partition]} to "
                f"{offset - 1} before they were read; raise the topic's retention or look why ingest fell behind",
                action="retention_loss",
            )
        self._store_batch(deleted(first_left, next_offsets), next_offsets)
        return next_offsets

    def _store_batch(self, batch: Batch, next_offsets: dict[TopicPartition, int]) -> None:
        if not batch.advances:
            return
        failpoint("before_commit")
        self._store.commit(batch)
        failpoint("after_commit")
        next_offsets.update({partition: advance.next for partition, advance in batch.advances.items()})
        self._source.report({partition: next_offsets[partition] for partition in batch.advances})
        self._note(batch)

    def _note(self, batch: Batch) -> None:
        self._metrics.examples.inc(len(batch.examples))
        for gap in batch.gaps:
            self._metrics.gap_offsets.labels(gap.reason).inc(gap.stop - gap.start)
        reasons = Counter(letter.reason for letter in batch.dead_letters)
        for reason, count in reasons.items():
            self._metrics.dead_letters.labels(reason).inc(count)
        if reasons:
            log.warning(
                f"{len(batch.dead_letters)} records became dead letters; the first is {batch.dead_letters[0].position}",
                action="dead_lettered",
                reasons={str(reason): count for reason, count in reasons.items()},
            )

    def _count(self, error: RelearndError) -> None:
        if isinstance(error, SourceError):
            self._metrics.source_errors.inc()
        elif isinstance(error, StaleBatchError):
            self._metrics.stale_batches.inc()
        else:
            self._metrics.unknown_outcomes.inc()


def _dead_letter(record: Record, reject: Reject, now: datetime) -> DeadLetter:
    return DeadLetter(record.position, reject.reason, reject.detail, record.key, record.value, rejected_at=now)


def _advances(
    before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]
) -> dict[TopicPartition, Advance]:
    return {
        partition: Advance(before.get(partition), offset)
        for partition, offset in after.items()
        if before.get(partition) != offset
    }
