"""Single records read once more from where they came, by a client of its own: the source's belongs to ingest's thread."""

import time
from collections.abc import Iterator, Sequence

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import OffsetOutOfRangeError

from daemon.config import KafkaConfig
from daemon.core.errors import ConfigError, SourceError
from daemon.core.stream import Position, Record, TopicPartition, kafka_topic
from daemon.ingest import kafka_batches
from daemon.ingest.kafka_logs import PROBE_LIMIT
from daemon.ingest.kafka_source import ANSWER_LIMIT, CLOSE_LIMIT, client_settings, from_client
from daemon.ingest.record_columns import RecordColumns
from daemon.runtime.kafka_client import connected, refusal

_ANSWER_MS = int(ANSWER_LIMIT * 1000)
_STEP_MS = 200


def look_up(config: KafkaConfig, positions: Sequence[Position]) -> Iterator[Record]:
    """The records that stand at these places now, which may be others than once stood there; of an empty place nothing.

    SourceError while brokers do not answer, or refuse us.
    """
    try:
        reader = _Reader(config)
        try:
            for position in positions:
                record = reader.record_at(position)
                if record:
                    yield record
        finally:
            reader.close()
    except (SourceError, ConfigError):
        raise
    except Exception as error:
        servers = ", ".join(config.bootstrap_servers)
        raise refusal(error, config) or SourceError(f"Kafka at {servers} failed: {error}") from error


class _Reader:
    def __init__(self, config: KafkaConfig) -> None:
        self._consumer = connected(KafkaConsumer, **{**client_settings(config), "group_id": None})
        self._names: dict[KafkaPartition, TopicPartition] = {}
        self._damaged: set[KafkaPartition] = set()
        self._room = kafka_batches.Room(config.max_unpacked)
        self._fast = kafka_batches.install(self._consumer, self._names, self._note_damage, self._room)

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_LIMIT * 1000))

    def record_at(self, position: Position) -> Record | None:
        """None where there is none, or none that can be read."""
        ours, offset = position.topic_partition, position.offset
        partition = KafkaPartition(kafka_topic(ours.topic), ours.partition)
        if partition.partition not in (self._consumer.partitions_for_topic(partition.topic) or ()):
            return None
        (end,) = self._consumer.end_offsets([partition], timeout_ms=_ANSWER_MS).values()
        self._names[partition] = ours
        self._damaged.clear()
        self._consumer.assign([partition])
        self._consumer.seek(partition, offset)
        # The embedded broker may say that a log ends inside its last batch; so what lies behind the end is asked for, too.
        gives_up_at = time.monotonic() + (ANSWER_LIMIT if offset < end else PROBE_LIMIT)
        while time.monotonic() < gives_up_at:
            try:
                found = self._first(ours)
            except OffsetOutOfRangeError:
                return None
            if found or self._damaged or (kafka_batches.stands_at(self._consumer, partition) or 0) > offset:
                return found._replace(position=position) if found and found.position.offset == offset else None
        if offset < end:
            raise SourceError(f"brokers have not given the record at {position} within {ANSWER_LIMIT:g} s; try again")
        return None

    def _first(self, ours: TopicPartition) -> Record | None:
        self._room.clear()
        for given in self._consumer.poll(timeout_ms=_STEP_MS, max_records=1).values():
            return RecordColumns.joined(given)[0] if self._fast else from_client(ours, given[0])
        return None

    def _note_damage(self, partition: KafkaPartition, offset: int, why: Exception) -> None:
        self._damaged.add(partition)
