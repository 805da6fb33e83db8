"""The records of a Kafka batch of message format 2, from its bytes. What is damaged raises; nothing is left out."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from kafka.record.util import decode_varint

from daemon.core.stream import TopicPartition
from daemon.ingest.record_columns import NO_TIME, RecordColumns, Whole, whole

MANY = 60  # records of a batch from which on it is quicker to read one field of all of them after the other

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LAST_TIME = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND

_Contents = Sequence[bytes | None]
_Columns = tuple[Whole, Whole, _Contents, _Contents]  # offsets and times, both from the batch's own; keys and values


def unpack(batch: Any, named: TopicPartition) -> RecordColumns:
    """All records of a batch, uncompressed. IndexError or ValueError where its structure is damaged."""
    read = _field_by_field if batch.records_count >= MANY else _one_by_one
    offsets, deltas, keys, values = read(batch)
    count = len(values)
    stamps = (
        np.full(count, batch.max_timestamp)
        if batch.timestamp_type == batch.LOG_APPEND_TIME
        else deltas + batch.first_timestamp
    )
    return RecordColumns(
        [named],
        np.zeros(count, np.int64),
        offsets + batch.base_offset,
        np.where((stamps < 0) | (stamps > _LAST_TIME), NO_TIME, stamps * 1000),
        np.full(count, batch.leader_epoch, np.int64),
        keys,
        values,
    )


def _field_by_field(batch: Any) -> _Columns:
    buffer = bytes(batch._buffer)
    fields = _Fields(buffer, _starts(buffer, batch._pos, batch.records_count))
    ends = fields.number() + fields.at
    fields.skip(1)  # attributes: none are in use
    deltas = fields.number()
    offsets = fields.number()
    keys, values = fields.content(), fields.content()
    fields.skip_headers()
    if (fields.at != ends).any():
        raise ValueError("a record ends elsewhere than it says")
    return offsets, deltas, keys, values


class _Fields:
    """Reads field after field of all records; `at` is where each of them stands."""

    def __init__(self, buffer: bytes, starts: Whole) -> None:
        self.at = starts
        self._buffer = buffer
        self._octets = np.frombuffer(buffer, np.uint8)

    def number(self) -> Whole:
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

    def skip(self, sizes: Whole | int) -> None:
        if np.any(sizes > len(self._buffer)):
            raise ValueError("a field is larger than its batch")
        self.at = self.at + sizes

    def skip_headers(self) -> None:
        """They are walked over, and their names checked as the client does."""
        begins = self.at
        for place in np.flatnonzero(self.number()).tolist():
            self.at[place] = _after_headers(self._buffer, int(begins[place]))


def _starts(buffer: bytes, pos: int, count: int) -> Whole:
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


def _one_by_one(batch: Any) -> _Columns:
    buffer, pos = bytes(batch._buffer), batch._pos
    rows = []
    for _ in range(batch.records_count):
        size, pos = decode_varint(buffer, pos)
        end = pos + size
        delta, pos = decode_varint(buffer, pos + 1)  # behind the attributes: none are in use
        offset, pos = decode_varint(buffer, pos)
        key, pos = _content(buffer, pos)
        value, pos = _content(buffer, pos)
        pos = _after_headers(buffer, pos)
        if pos != end:
            raise ValueError(f"a record says it ends at byte {end}, its fields end at {pos}")
        rows.append((offset, delta, key, value))
    if pos != len(buffer):
        raise ValueError(f"{len(buffer) - pos} bytes are left over")
    offsets, deltas, keys, values = zip(*rows, strict=True) if rows else ((), (), (), ())
    return whole(offsets), whole(deltas), keys, values


def _content(buffer: bytes, pos: int) -> tuple[bytes | None, int]:
    size, pos = decode_varint(buffer, pos)
    return (None, pos) if size < 0 else (buffer[pos : pos + size], pos + size)


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
