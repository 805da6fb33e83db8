"""The Source port on kafka-python: every partition of the configured topics, from the store's offsets.

Partitions are assigned by us, not by a group: the store decides where to go on, and the group's offsets are only reported
for lag tools. The client never deserializes: an exception inside its record iterator would make its next poll spin for ever.
For the same reason a client that raised is thrown away, and `start` builds another.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import OffsetOutOfRangeError
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata

from daemon.config import KafkaConfig
from daemon.core.errors import SourceError
from daemon.core.types import Position, Record, TopicPartition

log = structlog.get_logger(__name__)

Client = TypeVar("Client")

REFRESH_EVERY = 30.0  # seconds between two looks for new partitions and deleted records
REFRESH_EVERY_WHILE_MISSING = 2.0  # the same while a topic does not exist yet
ANSWER_LIMIT = 10.0  # seconds for the broker to answer a question
PROBE_LIMIT = 2.0  # seconds for a record to arrive that ought to be there
CLOSE_LIMIT = 2.0
CLIENT_LOGS_EVERY = 60.0  # seconds between two lines of one of the client's loggers

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class KafkaSource:
    """See `daemon.core.ports.Source`. Connects in `start`, so that a broker that is down is no reason not to start."""

    def __init__(self, config: KafkaConfig, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._monotonic = monotonic
        self._consumer: KafkaConsumer | None = None
        self._assigned: set[KafkaPartition] = set()
        self._next: dict[TopicPartition, int] = {}  # of assigned partitions, and of those stored but not seen yet
        self._refresh_at = 0.0
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("kafka.")]:
            logging.getLogger(name).addFilter(_seldom)

    def start(self, next_offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        self.close()
        self._assigned = set()
        self._next = dict(next_offsets)
        with self._mapped_errors():
            consumer = self._consumer = connected(KafkaConsumer, **_client_settings(self._config))
            partitions = self._existing(consumer)
            self._refuse_short_logs(consumer, partitions)
            return self._take_up(consumer, partitions)

    def poll(self, timeout: float) -> Sequence[Record]:
        with self._mapped_errors():
            consumer = self._started()
            if self._monotonic() >= self._refresh_at:
                self._refresh(consumer)
            polled = consumer.poll(timeout_ms=int(timeout * 1000))
            for partition, records in polled.items():
                self._next[TopicPartition(*partition)] = records[-1].offset + 1
        return [_record(record) for records in polled.values() for record in records]

    def report(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        offsets = {
            KafkaPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in next_offsets.items()
        }
        try:
            self._started().commit_async(offsets)
        except Exception as error:
            log.debug(f"group offsets were not reported: {error}", action="report_failed")

    def lag(self) -> Mapping[TopicPartition, int]:
        if self._consumer is None:
            return {}
        ends = {partition: self._consumer.highwater(partition) for partition in self._assigned}
        return {
            TopicPartition(*partition): max(0, end - self._next[TopicPartition(*partition)])
            for partition, end in ends.items()
            if end is not None
        }

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(Exception):
                consumer.close(autocommit=False, timeout_ms=int(CLOSE_LIMIT * 1000))

    def _started(self) -> KafkaConsumer:
        if self._consumer is None:
            raise SourceError("the source was not started again after it failed")
        return self._consumer

    def _refresh(self, consumer: KafkaConsumer) -> None:
        first_left = self._take_up(consumer, self._existing(consumer))
        if first_left:
            raise SourceError(f"the broker deleted records before they were read: {_shown(first_left)}")

    def _refuse_short_logs(self, consumer: KafkaConsumer, partitions: list[KafkaPartition]) -> None:
        for partition, end in _asked(consumer.end_offsets, partitions).items():
            stands = self._next.get(TopicPartition(*partition), 0)
            if stands > end and not _holds(consumer, partition, stands - 1):
                raise SourceError(
                    f"{partition.topic}[{partition.partition}] ends at offset {end}, but the store has read up to {stands}: the "
                    "topic was recreated or its log cut, or these are the wrong brokers. To read the new log, use a new store "
                    "or another topic name"
                )

    def _take_up(self, consumer: KafkaConsumer, partitions: list[KafkaPartition]) -> dict[TopicPartition, int]:
        """Assign them, the new ones at their next offset or the first that is left; returns what `start` promises."""
        first_left = {}
        for partition, first in _asked(consumer.beginning_offsets, partitions).items():
            ours = TopicPartition(*partition)
            if self._next.setdefault(ours, first) < first:
                first_left[ours] = self._next[ours] = first
        fresh = set(partitions) - self._assigned
        consumer.assign(partitions)
        self._assigned = set(partitions)
        for partition in fresh:
            consumer.seek(partition, self._next[TopicPartition(*partition)])
        return first_left

    def _existing(self, consumer: KafkaConsumer) -> list[KafkaPartition]:
        """Every partition of every topic that exists; decides when to look again."""
        found = {topic: sorted(consumer.partitions_for_topic(topic)) for topic in self._config.topics}
        missing = [topic for topic, partitions in found.items() if not partitions]
        if missing:
            log.warning(f"waiting for topics that do not exist yet: {', '.join(missing)}", action="topics_missing")
        self._refresh_at = self._monotonic() + (REFRESH_EVERY_WHILE_MISSING if missing else REFRESH_EVERY)
        return [KafkaPartition(topic, number) for topic, numbers in found.items() for number in numbers]

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        """Whatever the client raises, also from inside a damaged record batch, is the stream failing."""
        try:
            yield
        except SourceError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise SourceError(f"Kafka at {', '.join(self._config.bootstrap_servers)} failed: {error}") from error


def connected(client: Callable[..., Client], **settings: Any) -> Client:
    """Build a client of kafka-python. One that cannot connect leaves its thread and sockets behind; here they are closed."""
    owners: list[KafkaNetClient] = []

    def owner(**configs: Any) -> KafkaNetClient:
        owners.append(KafkaNetClient(**configs))
        return owners[0]

    try:
        return client(**settings, kafka_client=owner)
    except Exception:
        for left in owners:
            left.close()
        raise


def _client_settings(config: KafkaConfig) -> dict[str, Any]:
    return {
        "bootstrap_servers": config.bootstrap_servers,
        "client_id": config.client_id,
        "group_id": config.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # out of range is found out here and becomes a gap, never a silent jump
        "allow_auto_create_topics": False,
        "isolation_level": "read_committed",
        "max_poll_records": config.batch_records,
        "max_partition_fetch_bytes": max(1 << 20, config.max_record),
        "metadata_max_age_ms": int(REFRESH_EVERY * 1000),
        "request_timeout_ms": int(ANSWER_LIMIT * 1000),
        "bootstrap_timeout_ms": int(ANSWER_LIMIT * 1000),
    }


def _asked(
    question: Callable[..., dict[KafkaPartition, int]], partitions: list[KafkaPartition]
) -> dict[KafkaPartition, int]:
    return question(partitions, timeout_ms=int(ANSWER_LIMIT * 1000)) if partitions else {}


def _holds(consumer: KafkaConsumer, partition: KafkaPartition, offset: int) -> bool:
    """Whether there is a record. Asked only in doubt: the embedded broker may say that a log ends inside its last batch."""
    consumer.assign([partition])
    consumer.seek(partition, offset)
    try:
        return bool(consumer.poll(timeout_ms=int(PROBE_LIMIT * 1000), max_records=1))
    except OffsetOutOfRangeError:
        return False


def _shown(first_left: Mapping[TopicPartition, int]) -> str:
    return ", ".join(f"{topic}[{number}] below {offset}" for (topic, number), offset in first_left.items())


def _record(record: Any) -> Record:
    return Record(
        Position(record.topic, record.partition, record.offset), _time(record.timestamp), record.key, record.value
    )


def _time(milliseconds: int) -> datetime | None:
    if milliseconds < 0:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


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
