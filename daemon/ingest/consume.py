"""The loop that takes the stream in, and the one place that knows the order in which it becomes durable.

    poll -> decode -> curate -> one store transaction (every record's end, next offsets) -> tell the broker

The store's offsets are the truth. After anything went wrong we forget where we stood, ask the store, and start the source
there again: a record that comes twice lies below the store's next offset and is dropped, so nothing is lost or stored twice.

While one batch is committed, on a thread of its own, the next is polled and decoded. It is curated, and its commit begins, only
when the one before is durable; where that failed, what was decoded is thrown away. So the store sees one batch at a time,
in order, as if nothing overlapped.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog

from daemon.core.errors import OutcomeUnknownError, RelearndError, SourceError, StaleBatchError
from daemon.core.ports import Clock, Source, Store
from daemon.core.stream import Batch, TopicPartition
from daemon.ingest.assemble import assemble, deleted, merged
from daemon.ingest.cut_letters import cut
from daemon.ingest.decode import Decoder
from daemon.ingest.record_columns import RecordColumns
from daemon.runtime.failpoints import failpoint
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_BACKOFF = 0.25  # seconds
LONGEST_BACKOFF = 10.0
RESTART_LOGS_EVERY = 60.0  # seconds between two lines about failures in a row

RECOVERABLE = (SourceError, StaleBatchError, OutcomeUnknownError)


class Curator(Protocol):
    """Says which valid records become examples, a batch at a time. Used by the ingest thread only."""

    def resume(self, beat: Callable[[], None]) -> None:
        """Ingest starts from the store's offsets: forget what was curated and perhaps not stored, learn what the store holds.

        `beat` is called again and again while that takes long, then and later.
        """

    def curate(self, batch: Batch) -> Batch:
        """The batch with each record where it belongs: every position that came in goes out once, and the order is kept.

        All batches before it are in the store.
        """

    def kept(self) -> None:
        """What was curated last is durable."""


class TakeAll:
    """The curator who has nothing against any record."""

    def resume(self, beat: Callable[[], None]) -> None:
        pass

    def curate(self, batch: Batch) -> Batch:
        return batch

    def kept(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """A batch is closed when it has so many records, so many bytes of values, or is so many seconds old.

    What one poll gives is never divided, so a batch may exceed a limit by that.
    """

    records: int = 1
    size: int = 1
    seconds: float = 0.0


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: doubling, with jitter so that many learners do not call together."""
    longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 16))
    return longest * rng.uniform(0.5, 1.0)


class Ingest:
    """Owns the source and the writing of the stream; used by one thread, but for `lag`, `restart` and replacing `decoder`."""

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
        limits: BatchLimits = BatchLimits(),
        curator: Curator | None = None,
        held: Callable[[], bool] = lambda: False,
        tell: Callable[[str, str], None] = lambda state, detail: None,
    ) -> None:
        """`poll_timeout` in seconds: how long a round waits for records, and how fast a stop is noticed.

        While `held` says so nothing is polled. `tell` hears after each round how ingest is: "ok" or "degraded", and why.
        """
        self.decoder = decoder
        self._source = source
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._poll_timeout = poll_timeout
        self._limits = limits
        self._curator = curator or TakeAll()
        self._held = held
        self._tell = tell
        self._beat: Callable[[], None] = lambda: None
        self._restart = threading.Event()
        self._lag: Mapping[TopicPartition, int] = {}
        self._next_offsets: dict[TopicPartition, int] | None = None  # None: ask the store before going on
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._committing: tuple[Batch, Future[None]] | None = None

    def run(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        """Rounds until `stop`, with backoff while the stream or a commit fails. `beat` once a round or more; StoreError ends it."""
        self._beat = beat
        failures, told_at = 0, 0.0
        try:
            while not stop.is_set():
                beat()
                try:
                    self._attempt(self._round)
                    failures = 0
                    self._tell(*self._state())
                    if self._held():
                        stop.wait(self._poll_timeout)
                except RECOVERABLE as error:
                    failures += 1
                    self._tell("degraded", str(error))
                    seconds = backoff(failures, self._rng)
                    if failures == 1 or time.monotonic() >= told_at + RESTART_LOGS_EVERY:
                        told_at = time.monotonic()
                        log.warning(
                            f"ingest starts again from the store's offsets in {seconds:.1f} s: {error}",
                            action="ingest_restart",
                            failures=failures,
                        )
                    stop.wait(seconds)
        finally:
            with suppress(*RECOVERABLE):  # counted; the next start asks the store what became of it
                self._attempt(self._settle)

    def step(self) -> int:
        """One round whose batch is stored on return; returns how many records were kept.

        SourceError, StaleBatchError and OutcomeUnknownError are counted and raised; the next round then starts from the store.
        """
        return self._attempt(lambda: self._round() + self._settle())

    def restart(self) -> None:
        """Ask the store again where to go on before the next round; from any thread."""
        self._restart.set()

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records not yet read, as of the newest round; from any thread."""
        return self._lag

    def _attempt(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except RECOVERABLE as error:
            self._next_offsets = None
            self._count(error)
            raise

    def _state(self) -> tuple[str, str]:
        troubles = self._source.troubles()
        self._metrics.troubles.clear()
        for reason, count in Counter(trouble.reason for trouble in troubles.values()).items():
            self._metrics.troubles.labels(reason).set(count)
        return ("degraded", "; ".join(trouble.detail for trouble in troubles.values())) if troubles else ("ok", "")

    def _round(self) -> int:
        """Returns how many records the batch held whose commit ended in this round; the one begun here is still under way."""
        if self._restart.is_set():
            self._restart.clear()
            self._next_offsets = None
        next_offsets = self._start() if self._next_offsets is None else self._next_offsets
        if self._held():
            stored = self._settle()
            self._source.look()
            self._lag = self._source.lag()
            return stored
        records = self._gather()
        assembly = assemble(records, next_offsets, self.decoder, self._clock(), self._source.passed())
        stored = self._settle()
        if assembly.redelivered:
            log.info(
                f"dropped {assembly.redelivered} records that the store has already",
                action="redelivered",
                records=assembly.redelivered,
            )
        if assembly.batch.advances:
            self._begin(assembly.batch, next_offsets)
        elif not stored:
            self._store.tidy()
        self._lag = self._source.lag()
        return stored

    def _start(self) -> dict[TopicPartition, int]:
        self._settle()
        next_offsets = dict(self._store.next_offsets())
        self._curator.resume(self._beat)
        first_left = self._source.start(next_offsets, self._store.tails())
        self._next_offsets = next_offsets
        for partition, offset in first_left.items():
            log.error(
                f"{partition.topic}[{partition.partition}]: the broker deleted offsets {next_offsets[partition]} to "
                f"{offset - 1} before they were read; raise the topic's retention or look why ingest fell behind",
                action="retention_loss",
            )
        if first_left:
            self._begin(deleted(first_left, next_offsets), next_offsets)
            self._settle()
        return next_offsets

    def _gather(self) -> RecordColumns:
        """What one poll gives and, up to the limits, what follows soon.

        While a batch is committed a first record is waited for only as long as the others are, because the batch's end is to be
        told soon; but it is: a round without records would wait for the commit alone.
        """
        limits = self._limits
        parts = [self._polled(limits.seconds if self._committing else self._poll_timeout)]
        count, size = len(parts[0]), parts[0].size
        closes_at = time.monotonic() + limits.seconds
        while 0 < count < limits.records and size < limits.size:
            left = closes_at - time.monotonic()
            if left <= 0:
                break
            parts.append(self._polled(left))
            count += len(parts[-1])
            size += parts[-1].size
        return RecordColumns.joined(parts)

    def _polled(self, timeout: float) -> RecordColumns:
        return RecordColumns.of(self._source.poll(timeout))

    def _begin(self, batch: Batch, next_offsets: dict[TopicPartition, int]) -> None:
        curated = self._curator.curate(batch)
        curated = replace(curated, skips=merged(curated.skips), dead_letters=cut(curated.dead_letters))
        next_offsets.update({partition: advance.next for partition, advance in curated.advances.items()})
        self._committing = curated, self._committer.submit(self._commit, curated)

    def _commit(self, batch: Batch) -> None:
        """On the committing thread."""
        failpoint("before_commit")
        self._store.commit(batch)
        failpoint("after_commit")

    def _settle(self) -> int:
        """Wait for the commit under way, if any; returns how many records it kept. Raises what the commit raised."""
        if self._committing is None:
            return 0
        (batch, commit), self._committing = self._committing, None
        commit.result()
        self._curator.kept()
        self._source.report({partition: advance.next for partition, advance in batch.advances.items()})
        self._note(batch)
        return len(batch)

    def _note(self, batch: Batch) -> None:
        self._metrics.examples.inc(len(batch.examples))
        for gap in batch.gaps:
            self._metrics.gap_offsets.labels(gap.reason).inc(gap.stop - gap.start)
        for one in batch.quarantined:
            self._metrics.quarantined.labels(one.reason).inc()
        for skipped in batch.skips:
            self._metrics.skipped_offsets.labels(skipped.reason).inc(skipped.stop - skipped.start)
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
