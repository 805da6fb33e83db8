"""The records of a Kafka batch of message format 2, from its bytes. What is damaged raises; nothing is left out."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from kafka.record.util import decode_varint

from daemon.core.stream import Position, Record, TopicPartition

MANY = 100  # records of a batch from which on it is quicker to read one field of all of them after the other

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_new = tuple.__new__  # a named tuple without its constructor's frame

_Whole = npt.NDArray[np.int64]


def unpack(batch: Any, named: TopicPartition) -> list[Record]:
    """All records of a batch, uncompressed. IndexError or ValueError where its structure is damaged."""
    return _field_by_field(batch, named) if batch.records_count >= MANY else _one_by_one(batch, named)


def _field_by_field(batch: Any, named: TopicPartition) -> list[Record]:
    buffer = bytes(batch._buffer)
    fields = _Fields(buffer, _starts(buffer, batch._pos, batch.records_count))
    ends = fields.number() + fields.at
    fields.skip(1)  # attributes: none are in use
    deltas = fields.number()
    offsets = (fields.number() + batch.base_offset).tolist()
    keys, values = fields.content(), fields.content()
    fields.skip_headers()
    if (fields.at != ends).any():
        raise ValueError("a record ends elsewhere than it says")
    positions = map(_new, repeat(Position), zip(repeat(named.topic), repeat(named.partition), offsets))
    rows = zip(positions, _moments(batch, deltas), keys, values, repeat(batch.leader_epoch))
    return [*map(_new, repeat(Record), rows)]


def _moments(batch: Any, deltas: _Whole) -> Iterable[datetime | None]:
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        return repeat(time(batch.max_timestamp))
    stamps = (deltas + batch.first_timestamp).tolist()
    known = {stamp: time(stamp) for stamp in {*stamps}}
    return map(known.__getitem__, stamps)


class _Fields:
    """Reads field after field of all records; `at` is where each of them stands."""

    def __init__(self, buffer: bytes, starts: _Whole) -> None:
        self.at = starts
        self._buffer = buffer
        self._octets = np.frombuffer(buffer, np.uint8)

    def number(self) -> _Whole:
        """A varint of each."""
        octets = self._octets[self.at]
        self.at = self.at + 1
        value = (octets & 0x7F).astype(np.uint64)
        going, shift = np.flatnonzero(octets & 0x80), 0
        while going.size:
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than ten bytes")
            octets = self._octets[self.at[going]]
            self.at[going] += 1
            value[going] |= (octets & 0x7F).astype(np.uint64) << np.uint64(shift)
            going = going[octets >= 0x80]
        one = np.uint64(1)
        return ((value >> one) ^ (~(value & one) + one)).view(np.int64)

    def content(self) -> Sequence[bytes | None]:
        """Bytes of each, behind their number; None where that is negative."""
        sizes = self.number()
        if sizes.size and sizes.max() < 0:
            return [None] * sizes.size
        begins = self.at.tolist()
        self.skip(np.maximum(sizes, 0))
        buffer = self._buffer
        found: list[bytes | None] = [buffer[begin:end] for begin, end in zip(begins, self.at.tolist(), strict=True)]
        for absent in np.flatnonzero(sizes < 0).tolist():
            found[absent] = None
        return found

    def skip(self, sizes: _Whole | int) -> None:
        if np.any(sizes > len(self._buffer)):
            raise ValueError("a field is larger than its batch")
        self.at = self.at + sizes

    def skip_headers(self) -> None:
        """They are walked over, and their names checked as the client does."""
        begins = self.at
        for place in np.flatnonzero(self.number()).tolist():
            self.at[place] = _after_headers(self._buffer, int(begins[place]))


def _starts(buffer: bytes, pos: int, count: int) -> _Whole:
    """Where each record begins. ValueError unless the last ends with the batch."""
    starts = []
    for _ in range(count):
        starts.append(pos)
        head = buffer[pos]
        if head < 0x80:
            pos += 1 + (head >> 1)
        elif (more := buffer[pos + 1]) < 0x80:
            pos += 2 + ((head & 0x7F | more << 7) >> 1)
        else:
            size, pos = decode_varint(buffer, pos)
            if size < 0:
                raise ValueError(f"a record of {size} bytes")
            pos += size
    if pos != len(buffer):
        raise ValueError(f"the records end at byte {pos}, the batch at {len(buffer)}")
    return np.array(starts, np.int64)


def _one_by_one(batch: Any, named: TopicPartition) -> list[Record]:  # noqa: C901 - short integers are read in place: half the speed
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
