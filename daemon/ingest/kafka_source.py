"""The Source port on kafka-python: every partition of the configured topics, from the store's offsets.

Partitions are assigned by us, not by a group: the store decides where to go on, and the group's offsets are only reported
for lag tools. The client never deserializes: an exception inside its record iterator would make its next poll spin for ever.
For the same reason a client that raised is thrown away, and `start` builds another.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaTimeoutError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from daemon.config import KafkaConfig
from daemon.core.errors import ConfigError, SourceError
from daemon.core.states import TroubleReason
from daemon.core.stream import Position, Record, Tail, TopicPartition, Trouble
from daemon.ingest import kafka_batches, kafka_ids, kafka_logs, kafka_records
from daemon.ingest.record_columns import RecordColumns
from daemon.runtime.kafka_client import brokers, connected, refusal

log = structlog.get_logger(__name__)

RECONNECT_AFTER = 0.5  # seconds before the first new attempt at a connection that was lost
REFRESH_EVERY = (
    30.0  # seconds between two looks for new partitions and deleted records, and two tries of a damaged batch
)
REFRESH_EVERY_WHILE_MISSING = 2.0  # the same while a topic does not exist yet
LOOK_EVERY = 10.0  # seconds between two looks at the logs' ends while nothing is polled
MISSING_LOGS_EVERY = 60.0  # seconds between two lines about the same missing topics
ANSWER_LIMIT = 10.0  # seconds for the broker to answer a question
DENIAL_LIMIT = 1.0  # the same, about a topic that seems not to exist
CLOSE_LIMIT = 2.0
CLIENT_LOGS_EVERY = 60.0  # seconds between two lines of one of the client's loggers
FETCH_MOST = 16 << 20  # bytes in one answer of a broker, unless a single batch has more
FETCH_OF_EACH = 4 << 20  # the same of one partition; with the client's 1 MiB a batch waits for several answers
TAKEN_MOST = 256 << 20  # the same with such a batch; a broker itself takes 100 MiB, if nobody told it otherwise
OWNER = "relearnd-store:"  # before a store's id, in the group's metadata


class KafkaSource:
    """See `daemon.core.ports.Source`. Connects in `start`, so that a broker that is down is no reason not to start."""

    def __init__(
        self, config: KafkaConfig, *, store_id: str | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`store_id` is left with the group's offsets, and another one found there is refused; None: neither."""
        self._config = config
        self._store_id = store_id
        self._monotonic = monotonic
        self._consumer: KafkaConsumer | None = None
        self._was_connected = False
        self._fast = False
        self._room = kafka_batches.Room(config.max_unpacked)
        self._assigned: set[KafkaPartition] = set()
        self._names: dict[KafkaPartition, TopicPartition] = {}
        self._next: dict[TopicPartition, int] = {}  # of assigned partitions, and of those stored but not seen yet
        self._passed: dict[TopicPartition, tuple[int, int]] = {}
        self._ends: dict[KafkaPartition, int] = {}  # of the logs, as asked for while nothing was polled
        self._look_at = 0.0
        self._tails: Mapping[TopicPartition, Tail] = {}
        self._troubles: dict[TopicPartition, Trouble] = {}
        self._topic_ids: dict[str, UUID] = {}
        self._refresh_at = 0.0
        self._missing: list[str] = []
        self._tell_missing_at = 0.0
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("kafka.")]:
            logging.getLogger(name).addFilter(_seldom)

    def start(
        self, next_offsets: Mapping[TopicPartition, int], tails: Mapping[TopicPartition, Tail] | None = None
    ) -> Mapping[TopicPartition, int]:
        self.close()
        self._assigned = set()
        self._names = {}
        self._next = dict(next_offsets)
        self._passed = {}
        self._ends = {}
        self._topic_ids = {}
        self._tails = tails or {}
        with self._mapped_errors():
            consumer = self._consumer = connected(KafkaConsumer, **client_settings(self._config))
            self._fast = kafka_batches.install(consumer, self._names, self._hold, self._room)
            if self._fast:
                kafka_ids.fetch_by(consumer, self._topic_ids)
            partitions = self._existing(consumer)
            if not self._was_connected:
                self._find_denied_topics(consumer, partitions)
                self._refuse_foreign_group(consumer, partitions)
            self._was_connected = True
            self._set_troubles(self._unlike_what_was_read(consumer, partitions, self._tails))
            return self._take_up(consumer, partitions)

    def poll(self, timeout: float) -> Sequence[Record]:
        with self._mapped_errors():
            consumer = self._started()
            if self._monotonic() >= self._refresh_at:
                self._refresh(consumer)
            polled = self._poll_what_is_ours(consumer, timeout)
        for partition, records in polled.items():
            ours = self._names[partition]
            self._next[ours] = int(records.offsets[-1]) + 1
            self._passed.pop(ours, None)
        self._pass_over(consumer)
        for partition in polled:
            ours = self._names[partition]
            if ours in self._troubles and self._next[ours] > self._troubles[ours].next:
                self._set_troubles({other: trouble for other, trouble in self._troubles.items() if other != ours})
                log.info(f"{ours} can be read again", action="partition_mended")
        return RecordColumns.joined([*polled.values()])

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        passed, self._passed = self._passed, {}
        return passed

    def look(self) -> None:
        if self._monotonic() < self._look_at:
            return
        with self._mapped_errors():
            self._ends = self._asked(self._started().end_offsets, list(self._assigned))
        self._look_at = self._monotonic() + LOOK_EVERY

    def report(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        owner = OWNER + self._store_id if self._store_id else ""
        places = {ours: partition for partition, ours in self._names.items()}
        offsets = {
            places.get(ours, KafkaPartition(*ours)): OffsetAndMetadata(offset, owner, -1)
            for ours, offset in next_offsets.items()
        }
        try:
            self._started().commit_async(offsets)
        except Exception as error:
            log.debug(f"group offsets were not reported: {error}", action="report_failed")

    def troubles(self) -> Mapping[TopicPartition, Trouble]:
        return self._troubles

    def lag(self) -> Mapping[TopicPartition, int]:
        if self._consumer is None:
            return {}
        ends = {self._names[each]: self._known_end(self._consumer, each) for each in self._assigned}
        return {ours: max(0, end - self._next[ours]) for ours, end in ends.items() if end is not None}

    def _known_end(self, consumer: KafkaConsumer, partition: KafkaPartition) -> int | None:
        """Of the log: as the newest fetch said or as it was asked for, whichever is further; 0 of an empty partition."""
        known = (consumer.highwater(partition), self._ends.get(partition))
        return max((end for end in known if end is not None), default=None)

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(Exception):
                consumer.close(autocommit=False, timeout_ms=int(CLOSE_LIMIT * 1000))

    def _started(self) -> KafkaConsumer:
        if self._consumer is None:
            raise SourceError("the source was not started again after it failed")
        return self._consumer

    def _pass_over(self, consumer: KafkaConsumer) -> None:
        """What the client has gone past behind the last records: markers, aborted records, what compaction took."""
        for partition in self._assigned:
            ours, stands = self._names[partition], kafka_batches.stands_at(consumer, partition)
            if stands is not None and stands > self._next[ours]:
                first, _ = self._passed.get(ours, (self._next[ours], 0))
                self._passed[ours] = (first, stands)
                self._next[ours] = stands

    def _poll(
        self, consumer: KafkaConsumer, timeout: float, most: int | None = None
    ) -> Mapping[KafkaPartition, RecordColumns]:
        self._room.clear()
        polled: Mapping[KafkaPartition, Any] = consumer.poll(timeout_ms=int(timeout * 1000), max_records=most)
        self._refuse_recreated_topics(consumer)
        if self._fast:
            return {partition: RecordColumns.joined(parts) for partition, parts in polled.items()}
        return {
            partition: RecordColumns.of([from_client(self._names[partition], record) for record in records])
            for partition, records in polled.items()
        }

    # --- which partitions -----------------------------------------------------------------------------------------

    def _refresh(self, consumer: KafkaConsumer) -> None:
        first_left = self._take_up(consumer, self._existing(consumer))
        if first_left:
            raise SourceError(f"the broker deleted records before they were read: {_shown(first_left)}")
        consumer.resume(*consumer.paused())

    def _take_up(self, consumer: KafkaConsumer, partitions: list[KafkaPartition]) -> dict[TopicPartition, int]:
        """Assign them, the new ones at their next offset or the first that is left; returns what `start` promises."""
        first_left = {}
        for partition, first in self._asked(consumer.beginning_offsets, partitions).items():
            ours = self._names[partition]
            if self._next.setdefault(ours, first) >= first or ours in self._troubles:
                continue
            if self._config.on_gap == "halt":
                trouble = kafka_logs.cut_by_retention(ours, stands=self._next[ours], first=first)
                self._set_troubles({**self._troubles, ours: trouble})
            else:
                first_left[ours] = self._next[ours] = first
        readable = [partition for partition in partitions if not self._is_refused(self._names[partition])]
        fresh = set(readable) - self._assigned
        consumer.assign(readable)
        self._assigned = set(readable)
        for partition in fresh:
            ours = self._names[partition]
            kafka_batches.seek(consumer, partition, self._next[ours], self._epoch_before(ours))
            consumer.resume(partition)
        return first_left

    def _epoch_before(self, ours: TopicPartition) -> int:
        """The leader epoch of the record before the next one; -1 where that is not the one the store remembers."""
        tail = self._tails.get(ours)
        return tail.leader_epoch if tail and tail.offset + 1 == self._next[ours] else -1

    def _existing(self, consumer: KafkaConsumer) -> list[KafkaPartition]:
        """Every partition of every topic that exists, and from now on only by the ids these have; decides when to look again."""
        found = {topic: sorted(consumer.partitions_for_topic(topic)) for topic in self._config.all_topics}
        self._topic_ids |= kafka_ids.topic_ids(consumer, [each for each in found if each not in self._topic_ids])
        missing = [topic for topic, partitions in found.items() if not partitions]
        if missing and (missing != self._missing or self._monotonic() >= self._tell_missing_at):
            log.warning(f"waiting for topics that do not exist yet: {', '.join(missing)}", action="topics_missing")
            self._tell_missing_at = self._monotonic() + MISSING_LOGS_EVERY
        self._missing = missing
        self._refresh_at = self._monotonic() + (REFRESH_EVERY_WHILE_MISSING if missing else REFRESH_EVERY)
        partitions = [KafkaPartition(topic, number) for topic, numbers in found.items() for number in numbers]
        for partition in partitions:
            self._names.setdefault(partition, kafka_logs.stored_name(partition, self._next))
        return partitions

    def _find_denied_topics(self, consumer: KafkaConsumer, partitions: list[KafkaPartition]) -> None:
        """Brokers do not list topics that we may not read, as if these did not exist; asked for by name, they say so.

        Not asked where nobody says who we are: a broker might create the topic for it.
        """
        if self._config.security.protocol == "PLAINTEXT":
            return
        for topic in set(self._config.all_topics) - {partition.topic for partition in partitions}:
            with suppress(KafkaTimeoutError):
                consumer.beginning_offsets([KafkaPartition(topic, 0)], timeout_ms=int(DENIAL_LIMIT * 1000))

    # --- whether it is the log that was read ----------------------------------------------------------------------

    def _unlike_what_was_read(
        self, consumer: KafkaConsumer, partitions: list[KafkaPartition], tails: Mapping[TopicPartition, Tail]
    ) -> dict[TopicPartition, Trouble]:
        def poll(timeout: float) -> Mapping[KafkaPartition, Sequence[Record]]:
            return self._poll(consumer, timeout, most=1)

        stored = [partition for partition in partitions if self._next.get(self._names[partition])]
        firsts, ends = self._asked(consumer.beginning_offsets, stored), self._asked(consumer.end_offsets, stored)
        troubles, comparable = {}, {}
        for partition in stored:
            ours, first, end = self._names[partition], firsts[partition], ends[partition]
            stands, tail = self._next[ours], tails.get(ours)
            if stands > end and not kafka_logs.holds(consumer, poll, partition, stands - 1):
                troubles[ours] = kafka_logs.short(ours, stands=stands, first=first, end=end)
            elif tail is not None and tail.offset >= first:
                comparable[partition] = tail
        for partition in kafka_logs.strangers(consumer, poll, comparable) if comparable else ():
            ours, offset = self._names[partition], comparable[partition].offset
            troubles[ours] = kafka_logs.replaced(ours, offset=offset, stands=self._next[ours], first=firsts[partition])
        return troubles

    def _poll_what_is_ours(self, consumer: KafkaConsumer, timeout: float) -> Mapping[KafkaPartition, RecordColumns]:
        """A partition is left of which brokers say, by the leader epoch it was taken up with, that it is not what we read.

        Once it has been read from, that is an error like any other: after it all partitions are compared again.
        """
        try:
            return self._poll(consumer, timeout)
        except LogTruncationError as error:
            parted = {partition: at.offset if at else None for partition, at in error.divergent_offsets.items()}
            failure: Exception = error
        except OffsetOutOfRangeError as error:  # they say so, too, where they never had the epoch
            parted, failure = self._within_their_logs(consumer, error.args[0]), error
        parted = {partition: at for partition, at in parted.items() if self._epoch_before(self._names[partition]) >= 0}
        if not parted:
            raise failure
        firsts = self._asked(consumer.beginning_offsets, list(parted))
        troubles = {}
        for partition, at in parted.items():
            ours = self._names[partition]
            troubles[ours] = kafka_logs.parted(ours, at=at, stands=self._next[ours], first=firsts[partition])
        self._set_troubles({**self._troubles, **troubles})
        self._refresh(consumer)
        return {}

    def _within_their_logs(
        self, consumer: KafkaConsumer, stands: Mapping[KafkaPartition, int]
    ) -> dict[KafkaPartition, int | None]:
        firsts = self._asked(consumer.beginning_offsets, list(stands))
        ends = self._asked(consumer.end_offsets, list(stands))
        return {each: None for each, offset in stands.items() if firsts[each] <= offset <= ends[each]}

    def _refuse_recreated_topics(self, consumer: KafkaConsumer) -> None:
        """By its id such a topic gives nothing more. Asked before records are handed out, for brokers that are asked by name."""
        for topic, given in kafka_ids.topic_ids(consumer, list(self._topic_ids)).items():
            if given != self._topic_ids[topic]:
                raise SourceError(f"topic {topic} was deleted and created again while it was read")

    def _refuse_foreign_group(self, consumer: KafkaConsumer, partitions: list[KafkaPartition]) -> None:
        """The group's offsets decide nothing, but say who read for this group, and whether somebody moved them."""
        moved = []
        for partition in partitions if self._store_id else ():
            limit = int(ANSWER_LIMIT * 1000)
            committed = consumer.committed(partition, metadata=True, timeout_ms=limit)
            if committed is None or committed.offset < 0:
                continue
            said = committed.metadata or ""  # the embedded broker gives None
            owner = said.removeprefix(OWNER) if said.startswith(OWNER) else self._store_id
            if owner != self._store_id and not self._config.take_over:
                raise ConfigError(
                    f"another store ({owner}; ours is {self._store_id}) has read {partition.topic} for the group "
                    f"{self._config.group_id}: two learners of one group would each miss nothing, but nobody would know who is "
                    "meant. Give this learner a kafka.group_id of its own, or set kafka.take_over to true"
                )
            if committed.offset > self._next.get(self._names[partition], 0):
                moved.append(f"{partition.topic}[{partition.partition}] is at {committed.offset}")
        if moved:
            log.warning(
                f"the group {self._config.group_id} is ahead of the store: it was moved, or the store comes from a backup; "
                f"the store decides: {', '.join(moved)}",
                action="group_ahead",
            )

    # --- what cannot be read --------------------------------------------------------------------------------------

    def _hold(self, partition: KafkaPartition, offset: int, why: Exception) -> None:
        """Called by the client's fetching, on our thread: this partition rests until the next refresh, the others go on."""
        ours = self._names[partition]
        if self._consumer is not None:
            self._consumer.pause(partition)
        trouble = kafka_logs.damaged(ours, offset=offset, why=why)
        if ours not in self._troubles:
            log.error(trouble.detail, action="partition_damaged")
        self._troubles = {**self._troubles, ours: trouble}

    def _is_refused(self, ours: TopicPartition) -> bool:
        return ours in self._troubles and self._troubles[ours].reason is not TroubleReason.DAMAGED

    def _set_troubles(self, troubles: dict[TopicPartition, Trouble]) -> None:
        """Replaced as a whole, because others read them."""
        for ours, trouble in troubles.items():
            if self._troubles.get(ours) != trouble:
                log.error(trouble.detail, action=trouble.reason)
        self._troubles = troubles

    def _asked(
        self, question: Callable[..., dict[KafkaPartition, int]], partitions: list[KafkaPartition]
    ) -> dict[KafkaPartition, int]:
        try:
            return question(partitions, timeout_ms=int(ANSWER_LIMIT * 1000)) if partitions else {}
        except KeyError as error:  # the client's, of a partition that nobody answered for, as of one just created
            raise SourceError(f"brokers have not said where {error} begins and ends; it is asked again") from error

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        """Whatever the client raises, also from inside a damaged record batch, is the stream failing.

        But for being refused before we were ever let in: that is a fault of the configuration.
        """
        try:
            yield
        except (SourceError, ConfigError):
            self.close()
            raise
        except Exception as error:
            self.close()
            refused = refusal(error, self._config)
            if refused and not self._was_connected:
                raise ConfigError(str(refused)) from error
            if refused:
                raise refused from error
            raise SourceError(f"Kafka at {', '.join(self._config.bootstrap_servers)} failed: {error}") from error


def client_settings(config: KafkaConfig) -> dict[str, Any]:
    return {
        **brokers(config),
        "group_id": config.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # out of range is found out here and becomes a gap, never a silent jump
        "allow_auto_create_topics": False,
        "isolation_level": "read_committed",
        "max_poll_records": config.batch_records,
        "max_partition_fetch_bytes": max(FETCH_OF_EACH, config.max_record),
        "fetch_max_bytes": max(FETCH_MOST, config.max_record),
        # Beyond its own limit of 100 MB the client asks again and again, keeps what it was sent, and tells nobody.
        "receive_message_max_bytes": TAKEN_MOST,
        "metadata_max_age_ms": int(REFRESH_EVERY * 1000),
        "request_timeout_ms": int(ANSWER_LIMIT * 1000),
        "bootstrap_timeout_ms": int(ANSWER_LIMIT * 1000),
        # With the client's own 50 ms it spins where a proxy accepts for a broker that is down, and then cuts.
        "reconnect_backoff_ms": int(RECONNECT_AFTER * 1000),
    }


def _shown(first_left: Mapping[TopicPartition, int]) -> str:
    return ", ".join(f"{partition} below {offset}" for partition, offset in first_left.items())


def from_client(ours: TopicPartition, record: Any) -> Record:
    return Record(
        Position(*ours, record.offset),
        None if record.timestamp is None else kafka_records.time(record.timestamp),
        record.key,
        record.value,
        record.leader_epoch,
    )


class _Seldom(logging.Filter):
    """While a broker is down the client logs several lines a second; one a minute says as much."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._last.get(record.name, 0.0) < CLIENT_LOGS_EVERY:
            return False
        self._last[record.name] = record.created
        return True


_seldom = _Seldom()
