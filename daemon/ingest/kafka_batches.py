"""Record batches as kafka-python fetched them, unpacked straight into our records.

The client spends most of its time building a ConsumerRecord of thirteen fields for each record. Here its `PartitionRecords`,
which lies between a fetched answer and what `poll` gives, is replaced for one consumer by one that builds ours. That is a
private part of the client, so it is done for releases it was compared with and only while the part looks as expected;
otherwise `poll` gives ConsumerRecords and the source converts them. Which records come is the same, byte for byte.

What cannot be read (a wrong checksum, a codec that is not installed, a damaged structure, more than `Room` allows) ends that
partition's answer and is told to `on_damage`; the client's own way is an exception for everything, after which it would spin
for ever.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.structs import OffsetAndMetadata

from daemon.core.stream import Position, Record, TopicPartition
from daemon.ingest.kafka_codecs import unpacked
from daemon.ingest.kafka_records import time, unpack
from daemon.ingest.record_columns import RecordColumns
from daemon.runtime.kafka_client import COMPARED_WITH

log = structlog.get_logger(__name__)

OnDamage = Callable[
    [KafkaPartition, int, Exception], None
]  # the partition, the offset it stands at, what is wrong there

_ARGUMENTS = (
    "self", "fetch_offset", "tp", "records", "key_deserializer", "value_deserializer", "check_crcs", "isolation_level",
    "aborted_transactions", "metric_aggregator", "on_drain",
)  # fmt: skip


def why_not() -> str | None:
    """Why the client's own path must be taken; None where ours can."""
    release = version("kafka-python")
    if release not in COMPARED_WITH:
        return f"kafka-python {release} is not one of those compared with: {', '.join(sorted(COMPARED_WITH))}"
    if tuple(inspect.signature(Fetcher.PartitionRecords.__init__).parameters) != _ARGUMENTS:
        return "kafka-python's PartitionRecords takes other arguments than expected"
    return None


@dataclass(slots=True)
class Room:
    """How many bytes compressed batches may unpack to: one of them, and about all of them that one poll gives."""

    most: int
    left: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """What was unpacked has been taken away."""
        self.left = self.most


def install(
    consumer: KafkaConsumer, names: Mapping[KafkaPartition, TopicPartition], on_damage: OnDamage, limit: Room
) -> bool:
    """Make this consumer's `poll` give, for each partition, lists of our records' columns, under the store's names.

    False, with a line in the log, where that cannot be done. `limit` is cleared by the caller before each poll.
    """
    reason = why_not()
    if reason:
        log.warning(f"records are read the slow way: {reason}", action="slow_fetch")
        return False

    class Unpacked(PartitionBatches):
        room = limit

        @property
        def named(self) -> TopicPartition:
            return names[self.topic_partition]

        def damaged(self, error: Exception) -> None:
            on_damage(self.topic_partition, self.next_fetch_offset, error)

    consumer._fetcher.PartitionRecords = Unpacked
    return True


def seek(consumer: KafkaConsumer, partition: KafkaPartition, offset: int, epoch: int) -> None:
    """`epoch` is that of the leader when the record before the offset was written, -1 for unknown: with it brokers say, as soon
    as they are asked for records, whether that record still is in their log (KIP-320)."""
    consumer.seek(partition, offset)
    if epoch >= 0 and why_not() is None:
        consumer._subscription.seek(partition, OffsetAndMetadata(offset, "", epoch))


def stands_at(consumer: KafkaConsumer, partition: KafkaPartition) -> int | None:
    """Up to where `poll` gave all there is; its `position` would ask brokers. None where the client does not say so."""
    state = getattr(getattr(consumer, "_subscription", None), "assignment", {}).get(partition)
    position = getattr(state, "position", None)
    return position.offset if position else None


class PartitionBatches(Fetcher.PartitionRecords):  # type: ignore[misc]
    """One partition's part of an answer. The client asks `take` for records and reads `next_fetch_offset` afterwards."""

    room: Room

    def __init__(self, fetch_offset: int, tp: KafkaPartition, records: Any, **settings: Any) -> None:
        super().__init__(fetch_offset, tp, records, **settings)
        self.record_iterator: Iterator[RecordColumns] | None = self._batches(records)
        self._ready = RecordColumns.of([])
        self._given = 0  # of those that are ready
        self._after_ready = fetch_offset
        self._damage: Exception | None = None

    @property
    def named(self) -> TopicPartition:
        """What the records' positions call the partition."""
        raise NotImplementedError

    def damaged(self, error: Exception) -> None:
        """What is at `next_fetch_offset` cannot be read; there will be no more records of this answer."""
        raise NotImplementedError

    def take(self, n: int | None = None) -> "Taken":
        most = n if n is not None else 1 << 62
        taken = Taken()
        while self.record_iterator is not None and len(taken) < most:
            if self._given == len(self._ready):
                if self.room.left <= 0:
                    self.drain()  # the client asks the broker again for what is left
                    break
                if not self._unpack_next():
                    self._end(taken)
                    break
            part = self._ready[self._given : self._given + most - len(taken)]
            taken.add(part)
            self._given += len(part)
            has_more = self._given < len(self._ready)
            self.next_fetch_offset = int(self._ready.offsets[self._given]) if has_more else self._after_ready
        self.records_read += len(taken)
        return taken

    def _unpack_next(self) -> bool:
        """Whether there are records again; `_damage` says why not, if not because all were read."""
        self._ready, self._given = RecordColumns.of([]), 0
        if self._damage is None and self.record_iterator is not None:
            try:
                self._ready = next(self.record_iterator, self._ready)
            except Exception as error:
                self._damage = error
        return bool(self._ready)

    def _end(self, taken: "Taken") -> None:
        """All was read, or what comes next is damaged: that is told once the records before it have been taken."""
        if self._damage is None:
            self.next_fetch_offset = self._after_ready
            self.drain()
        elif not taken:
            error, self._damage = self._damage, None
            self.next_fetch_offset = self._after_ready
            self.drain()
            self.damaged(error)

    def _batches(self, records: Any) -> Iterator[RecordColumns]:
        """The records of one batch after the other, where it has any; `_after_ready` is where the log goes on behind it."""
        while (batch := records.next_batch()) is not None:
            self.bytes_read += batch.size_in_bytes
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"the batch at offset {batch.base_offset} has a wrong checksum")
            if batch.magic < 2:
                unpacked = self._of_old_format(batch)
            elif self._is_left_out(batch):
                unpacked = RecordColumns.of([])
            else:
                unpacked = self._of_new_format(batch)
            if batch.magic >= 2:
                self._after_ready = max(self._after_ready, batch.next_offset)
            elif unpacked:
                self._after_ready = int(unpacked.offsets[-1]) + 1
            if unpacked:
                yield unpacked

    def _is_left_out(self, batch: Any) -> bool:
        """Transaction markers always are; records of an aborted transaction unless all are asked for."""
        self.leader_epoch = batch.leader_epoch
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _of_new_format(self, batch: Any) -> RecordColumns:
        self._inflate(batch)
        try:
            records = unpack(batch, self.named)
        except (IndexError, ValueError) as error:
            raise CorruptRecordError(f"the batch at offset {batch.base_offset} is damaged: {error}") from error
        return self._from_here(records)

    def _inflate(self, batch: Any) -> None:
        if batch.compression_type:
            batch._assert_has_codec(batch.compression_type)
            batch._buffer = unpacked(batch.compression_type, bytes(batch._buffer[batch._pos :]), self.room.most)
            batch._pos = 0
            batch._decompressed = True
            self.room.left -= len(batch._buffer)

    def _of_old_format(self, batch: Any) -> RecordColumns:
        """Such a batch is unpacked by the client; ours only looks beforehand how much it would be."""
        if batch.compression_type:
            batch._assert_has_codec(batch.compression_type)
            start = batch.KEY_OFFSET_V1 if batch.magic else batch.KEY_OFFSET_V0
            self.room.left -= len(unpacked(batch.compression_type, batch._read_key_value(start)[1], self.room.most))
        records = []
        for old in batch:
            if self.check_crcs and not old.validate_crc():
                raise CorruptRecordError(f"the record at offset {old.offset} has a wrong checksum")
            moment = None if old.timestamp is None else time(old.timestamp)
            records.append(Record(Position(*self.named, old.offset), moment, old.key, old.value))
        return self._from_here(RecordColumns.of(records))

    def _from_here(self, records: RecordColumns) -> RecordColumns:
        """A batch is given whole even when it is asked for from its middle."""
        if not records or records.offsets[0] >= self.fetch_offset:
            return records
        return RecordColumns.of([record for record in records if record.position.offset >= self.fetch_offset])


class Taken:
    """What `take` gives: for the client, which counts it and extends a list by it, the records; in truth, their columns."""

    def __init__(self) -> None:
        self._parts: list[RecordColumns] = []
        self._count = 0

    def add(self, part: RecordColumns) -> None:
        self._parts.append(part)
        self._count += len(part)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RecordColumns]:
        return iter(self._parts)
