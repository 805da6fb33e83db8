"""Records by their fields, as they lie in Kafka's batches: an object is built only for who asks for one of them.

Of the time from a fetched answer to decoded examples, building the objects would be a third at 160 bytes a record.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, compress, pairwise
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from daemon.core.stream import Position, Record, TopicPartition
from daemon.runtime.arrow_examples import micros

NO_TIME = np.iinfo(np.int64).min  # in `stamps`

Whole = npt.NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_new = tuple.__new__  # a named tuple without its constructor's frame


@dataclass(frozen=True, slots=True, eq=False)
class RecordColumns(Sequence[Record]):
    """One value a record in each column; `places` point into `partitions`; `stamps` are in microseconds."""

    partitions: Sequence[TopicPartition]
    places: Whole
    offsets: Whole
    stamps: Whole
    epochs: Whole
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    @classmethod
    def of(cls, records: Sequence[Record]) -> "RecordColumns":
        """As they are, or taken apart."""
        if isinstance(records, RecordColumns):
            return records
        partitions = dict.fromkeys(record.position.topic_partition for record in records)
        places = {partition: place for place, partition in enumerate(partitions)}
        return cls(
            [*partitions],
            whole(places[record.position.topic_partition] for record in records),
            whole(record.position.offset for record in records),
            whole(NO_TIME if record.timestamp is None else micros(record.timestamp) for record in records),
            whole(record.leader_epoch for record in records),
            [record.key for record in records],
            [record.value for record in records],
        )

    @classmethod
    def joined(cls, parts: Sequence["RecordColumns"]) -> "RecordColumns":
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        partitions = dict.fromkeys(chain.from_iterable(part.partitions for part in parts))
        place_of = {partition: place for place, partition in enumerate(partitions)}
        return cls(
            [*partitions],
            _concatenated([whole(map(place_of.__getitem__, part.partitions))[part.places] for part in parts]),
            _concatenated([part.offsets for part in parts]),
            _concatenated([part.stamps for part in parts]),
            _concatenated([part.epochs for part in parts]),
            [*chain.from_iterable(part.keys for part in parts)],
            [*chain.from_iterable(part.values for part in parts)],
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(map(len, filter(None, self.values)))

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> Record | Self:
        if isinstance(place, slice):
            return type(self)(
                self.partitions,
                self.places[place],
                self.offsets[place],
                self.stamps[place],
                self.epochs[place],
                self.keys[place],
                self.values[place],
            )
        first = range(len(self))[place]
        (record,) = self[first : first + 1]
        return record

    def __iter__(self) -> Iterator[Record]:
        columns = (self.places.tolist(), self.offsets.tolist(), self.keys, self.values, self.epochs.tolist())
        for place, offset, key, value, epoch, at in zip(*columns, _moments(self.stamps), strict=True):
            topic, number = self.partitions[place]
            yield _new(Record, (_new(Position, (topic, number, offset)), at, key, value, epoch))

    def where(self, chosen: npt.NDArray[np.bool_]) -> Self:
        """Those for which it says so."""
        return type(self)(
            self.partitions,
            self.places[chosen],
            self.offsets[chosen],
            self.stamps[chosen],
            self.epochs[chosen],
            [*compress(self.keys, chosen)],
            [*compress(self.values, chosen)],
        )

    def runs(self) -> Iterator[tuple[TopicPartition, int, int]]:
        """Where one record follows the other in its partition: that, and the places of the first and behind the last."""
        if len(self):
            breaks = np.flatnonzero((np.diff(self.offsets) != 1) | (np.diff(self.places) != 0)) + 1
            for start, stop in pairwise([0, *breaks.tolist(), len(self)]):
                yield self.partitions[self.places[start]], start, stop


def whole(numbers: Iterable[int]) -> Whole:
    return np.fromiter(numbers, np.int64)


def _concatenated(columns: Sequence[Whole]) -> Whole:
    return np.concatenate(columns) if columns else np.empty(0, np.int64)


def _moments(stamps: Whole) -> Iterator[datetime | None]:
    known = {stamp: _EPOCH + stamp * _MICROSECOND for stamp in {*stamps.tolist()} - {NO_TIME}}
    return map(known.get, stamps.tolist())
