"""Record batches as kafka-python fetched them, unpacked straight into our records.

The client spends most of its time building a ConsumerRecord of thirteen fields for each record. Here its `PartitionRecords`,
which lies between a fetched answer and what `poll` gives, is replaced for one consumer by one that builds ours. That is a
private part of the client, so it is done for releases it was compared with and only while the part looks as expected;
otherwise `poll` gives ConsumerRecords and the source converts them. Which records come is the same, byte for byte.

What cannot be read (a wrong checksum, a codec that is not installed, a damaged structure) ends that partition's answer and is
told to `on_damage`; the client's own way is an exception for everything, after which it would spin for ever.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.util import decode_varint

from daemon.core.stream import Position, Record, TopicPartition
from daemon.runtime.kafka_client import COMPARED_WITH

log = structlog.get_logger(__name__)

OnDamage = Callable[
    [KafkaPartition, int, Exception], None
]  # the partition, the offset it stands at, what is wrong there

_ARGUMENTS = (
    "self", "fetch_offset", "tp", "records", "key_deserializer", "value_deserializer", "check_crcs", "isolation_level",
    "aborted_transactions", "metric_aggregator", "on_drain",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_new = tuple.__new__  # a named tuple without its constructor's frame


def why_not() -> str | None:
    """Why the client's own path must be taken; None where ours can."""
    release = version("kafka-python")
    if release not in COMPARED_WITH:
        return f"kafka-python {release} is not one of those compared with: {', '.join(sorted(COMPARED_WITH))}"
    if tuple(inspect.signature(Fetcher.PartitionRecords.__init__).parameters) != _ARGUMENTS:
        return "kafka-python's PartitionRecords takes other arguments than expected"
    return None


def install(consumer: KafkaConsumer, names: Mapping[KafkaPartition, TopicPartition], on_damage: OnDamage) -> bool:
    """Make this consumer's `poll` give our records, under the store's names of the partitions.

    False, with a line in the log, where that cannot be done.
    """
    reason = why_not()
    if reason:
        log.warning(f"records are read the slow way: {reason}", action="slow_fetch")
        return False

    class Unpacked(PartitionBatches):
        @property
        def named(self) -> TopicPartition:
            return names[self.topic_partition]

        def damaged(self, error: Exception) -> None:
            on_damage(self.topic_partition, self.next_fetch_offset, error)

    consumer._fetcher.PartitionRecords = Unpacked
    return True


def topic_ids(consumer: KafkaConsumer, topics: Sequence[str]) -> dict[str, Any]:
    """The ids that brokers gave these topics when they were created, as far as the client knows them."""
    asked = getattr(getattr(consumer, "_cluster", None), "topic_id", None)
    found = {topic: asked(topic) for topic in topics} if asked else {}
    return {topic: given for topic, given in found.items() if given is not None}


class PartitionBatches(Fetcher.PartitionRecords):  # type: ignore[misc]
    """One partition's part of an answer. The client asks `take` for records and reads `next_fetch_offset` afterwards."""

    def __init__(self, fetch_offset: int, tp: KafkaPartition, records: Any, **settings: Any) -> None:
        super().__init__(fetch_offset, tp, records, **settings)
        self.record_iterator: Iterator[list[Record]] | None = self._batches(records)
        self._ready: list[Record] = []
        self._after_ready = fetch_offset
        self._damage: Exception | None = None

    @property
    def named(self) -> TopicPartition:
        """What the records' positions call the partition."""
        raise NotImplementedError

    def damaged(self, error: Exception) -> None:
        """What is at `next_fetch_offset` cannot be read; there will be no more records of this answer."""
        raise NotImplementedError

    def take(self, n: int | None = None) -> list[Record]:
        most = n if n is not None else 1 << 62
        taken: list[Record] = []
        while self.record_iterator is not None and len(taken) < most:
            if not self._ready and not self._unpack_next():
                self._end(taken)
                break
            wanted = most - len(taken)
            taken += self._ready[:wanted]
            del self._ready[:wanted]
            self.next_fetch_offset = self._ready[0].position.offset if self._ready else self._after_ready
        self.records_read += len(taken)
        return taken

    def _unpack_next(self) -> bool:
        """Whether there are records again; `_damage` says why not, if not because all were read."""
        if self._damage is None and self.record_iterator is not None:
            try:
                self._ready = next(self.record_iterator, [])
            except Exception as error:
                self._damage = error
        return bool(self._ready)

    def _end(self, taken: list[Record]) -> None:
        """All was read, or what comes next is damaged: that is told once the records before it have been taken."""
        if self._damage is None:
            self.next_fetch_offset = self._after_ready
            self.drain()
        elif not taken:
            error, self._damage = self._damage, None
            self.next_fetch_offset = self._after_ready
            self.drain()
            self.damaged(error)

    def _batches(self, records: Any) -> Iterator[list[Record]]:
        """The records of one batch after the other, no list empty; `_after_ready` is where the log goes on behind it."""
        while (batch := records.next_batch()) is not None:
            self.bytes_read += batch.size_in_bytes
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"the batch at offset {batch.base_offset} has a wrong checksum")
            if batch.magic < 2:
                unpacked = self._of_old_format(batch)
            elif self._is_left_out(batch):
                unpacked = []
            else:
                unpacked = self._of_new_format(batch)
            if batch.magic >= 2:
                self._after_ready = max(self._after_ready, batch.next_offset)
            elif unpacked:
                self._after_ready = unpacked[-1].position.offset + 1
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

    def _of_new_format(self, batch: Any) -> list[Record]:
        batch._maybe_uncompress()
        try:
            records = unpack(batch, self.named)
        except (IndexError, ValueError) as error:
            raise CorruptRecordError(f"the batch at offset {batch.base_offset} is damaged: {error}") from error
        return self._from_here(records)

    def _of_old_format(self, batch: Any) -> list[Record]:
        records = []
        for old in batch:
            if self.check_crcs and not old.validate_crc():
                raise CorruptRecordError(f"the record at offset {old.offset} has a wrong checksum")
            moment = None if old.timestamp is None else time(old.timestamp)
            records.append(Record(Position(*self.named, old.offset), moment, old.key, old.value))
        return self._from_here(records)

    def _from_here(self, records: list[Record]) -> list[Record]:
        """A batch is given whole even when it is asked for from its middle."""
        if not records or records[0].position.offset >= self.fetch_offset:
            return records
        return [record for record in records if record.position.offset >= self.fetch_offset]


def unpack(batch: Any, named: TopicPartition) -> list[Record]:  # noqa: C901 - short integers are read in place: half the speed
    """All records of a batch of message format 2, uncompressed. IndexError or ValueError where its structure is damaged."""
    buffer, pos, epoch = bytes(batch._buffer), batch._pos, batch.leader_epoch
    base_offset, first_timestamp = batch.base_offset, batch.first_timestamp
    stamped_by_broker = batch.timestamp_type == batch.LOG_APPEND_TIME
    topic, number = named
    records: list[Record] = []
    add, new, record_type, position_type = records.append, _new, Record, Position
    known = batch.max_timestamp if stamped_by_broker else first_timestamp
    moment = time(known)
    for _ in range(batch.records_count):
        head = buffer[pos]
        if not head & 0x81:
            end = pos + 1 + (head >> 1)
            pos += 2  # the length, and attributes: none are in use
        elif (more := buffer[pos + 1]) < 0x80 and not head & 1:
            end = pos + 2 + ((head & 0x7F | more << 7) >> 1)
            pos += 3
        else:
            size, pos = decode_varint(buffer, pos)
            end = pos + size
            pos += 1
        delta = buffer[pos]
        if delta < 0x80:
            delta = (delta >> 1) ^ -(delta & 1)
            pos += 1
        else:
            delta, pos = decode_varint(buffer, pos)
        if first_timestamp + delta != known and not stamped_by_broker:
            known = first_timestamp + delta
            moment = time(known)
        offset = buffer[pos]
        if offset < 0x80:
            offset = (offset >> 1) ^ -(offset & 1)
            pos += 1
        else:
            offset, pos = decode_varint(buffer, pos)
        key = value = None
        if buffer[pos] == 1:  # a length of -1: no key
            pos += 1
        else:
            size, pos = decode_varint(buffer, pos)
            if size >= 0:
                key = buffer[pos : (pos := pos + size)]
        head = buffer[pos]
        if head >= 0x80 and (more := buffer[pos + 1]) < 0x80 and not head & 1:
            pos += 2
            value = buffer[pos : (pos := pos + ((head & 0x7F | more << 7) >> 1))]
        else:
            size, pos = decode_varint(buffer, pos)
            if size >= 0:
                value = buffer[pos : (pos := pos + size)]
        pos = _after_headers(buffer, pos) if buffer[pos] else pos + 1
        if pos != end:
            raise ValueError(f"a record says it ends at byte {end}, its fields end at {pos}")
        position = new(position_type, (topic, number, base_offset + offset))
        add(new(record_type, (position, moment, key, value, epoch)))
    if pos != len(buffer):
        raise ValueError(f"{len(buffer) - pos} bytes are left over")
    return records


def _after_headers(buffer: bytes, pos: int) -> int:
    """Headers are walked over, and their names checked as the client does."""
    count, pos = decode_varint(buffer, pos)
    if count < 0:
        raise ValueError(f"a record with {count} headers")
    for _ in range(count):
        size, pos = decode_varint(buffer, pos)
        if size < 0:
            raise ValueError("a header without a name")
        buffer[pos : pos + size].decode()
        size, pos = decode_varint(buffer, pos + size)
        pos += max(0, size)
    return pos


def time(milliseconds: int) -> datetime | None:
    """A broker's timestamp; None for none, and beyond the year 9999."""
    if milliseconds < 0:
        return None
    try:
        return _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        return None
