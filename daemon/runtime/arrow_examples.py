"""Examples as Arrow columns: so ingest decodes, curates and stores them, and builds an object only for who asks for one.

Columns are made and joined while other Python threads run. The buffers are filled here and not by `pyarrow.array`, which imports
pandas where that is installed: 90 MB for nothing.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from daemon.core.states import Split
from daemon.core.stream import Example, Position

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIMES = ("occurred_at", "ingested_at")

Whole = npt.NDArray[np.int64]


class ExampleColumns(Sequence[Example]):
    """`table` has a column for each field, in the order of `Example`; three for the position; an empty subject stands for none."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        ingested = [example.ingested_at for example in examples]
        read_at = {at: micros(at) for at in set(ingested)}
        columns = {
            "topic": strings([example.position.topic for example in examples]),
            "part": integers([example.position.partition for example in examples]),
            "off": integers([example.position.offset for example in examples]),
            "id": strings([example.id for example in examples]),
            "text": strings([example.text for example in examples]),
            "label": strings([example.label for example in examples]),
            "occurred_at": times([micros(example.occurred_at) for example in examples]),
            "ingested_at": times([read_at[at] for at in ingested]),
            "source": strings([example.source for example in examples]),
            "split": strings([example.split for example in examples]),
            "subject": strings([example.subject or "" for example in examples]),
        }
        return cls(pa.table(columns))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        if isinstance(place, slice):
            return list(self)[place]
        (example,) = ExampleColumns(self.table.slice(range(len(self))[place], 1))
        return example

    def __iter__(self) -> Iterator[Example]:
        columns = map(self.column, self.table.column_names)
        for topic, part, off, id_, text, label, occurred_at, ingested_at, source, split, subject in zip(
            *columns, strict=True
        ):
            position = Position(topic, part, off)
            yield Example(position, id_, text, label, occurred_at, ingested_at, source, Split(split), subject or None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> list[Any]:
        values = self.table.column(name)
        if name in _TIMES:
            return [_EPOCH + at * _MICROSECOND for at in values.cast(pa.int64()).to_pylist()]
        return list(values.to_pylist())

    def without(self, places: Collection[int]) -> Self:
        left = np.ones(len(self), bool)
        left[list(places)] = False
        return type(self)(self.table.take(integers(np.flatnonzero(left))))


def column(examples: Sequence[Any], name: str) -> list[Any]:
    """One field of each."""
    return examples.column(name) if isinstance(examples, ExampleColumns) else [getattr(one, name) for one in examples]


def newest_time(examples: Sequence[Example]) -> datetime | None:
    """When the latest of them occurred."""
    if isinstance(examples, ExampleColumns):
        since_1970 = examples.table.column("occurred_at").cast(pa.int64()).to_pylist()
        return _EPOCH + max(since_1970) * _MICROSECOND if since_1970 else None
    return max((example.occurred_at for example in examples), default=None)


def places_ahead(examples: Sequence[Example], most: timedelta) -> list[int]:
    """Of those that occurred more than `most` after they were read."""
    if not isinstance(examples, ExampleColumns):
        return [place for place, one in enumerate(examples) if one.occurred_at - one.ingested_at > most]
    occurred, ingested = (examples.table.column(name).cast(pa.int64()) for name in _TIMES)
    ahead, limit = pc.subtract(occurred, ingested), most // _MICROSECOND
    if (pc.max(ahead).as_py() or 0) <= limit:
        return []
    return [place for place, by in enumerate(ahead.to_pylist()) if by > limit]


def as_columns(examples: Sequence[Example]) -> ExampleColumns:
    return examples if isinstance(examples, ExampleColumns) else ExampleColumns.of(examples)


def joined(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    """One after the other: as columns where one of them is that, else as a list."""
    if not any(isinstance(part, ExampleColumns) for part in parts):
        return [example for part in parts for example in part]
    return ExampleColumns(pa.concat_tables([as_columns(part).table for part in parts]))


def strings(values: Sequence[str]) -> pa.Array:
    text = "".join(values)
    if text.isascii():
        return _large_strings(text.encode(), map(len, values))
    encoded = [value.encode() for value in values]
    return _large_strings(b"".join(encoded), map(len, encoded))


def same_string(value: str, count: int) -> pa.Array:
    encoded = value.encode()
    offsets = np.arange(count + 1, dtype=np.int64) * len(encoded)
    return pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(encoded * count))


def one_of(choices: Sequence[str], numbers: npt.NDArray[np.int8]) -> pa.Array:
    """For each number the choice at that place."""
    indices = pa.Array.from_buffers(pa.int8(), len(numbers), [None, pa.py_buffer(numbers)])
    return strings(choices).take(indices)


def integers(values: Iterable[int] | Whole) -> pa.Array:
    return _fixed(pa.int64(), values)


def times(since_1970: Iterable[int] | Whole) -> pa.Array:
    """Of microseconds."""
    return _fixed(pa.timestamp("us"), since_1970)


def micros(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _large_strings(content: bytes, lengths: Iterable[int]) -> pa.Array:
    offsets = array("q", accumulate(lengths, initial=0))
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(content))


def _fixed(kind: pa.DataType, values: Iterable[int] | Whole) -> pa.Array:
    numbers = values if isinstance(values, np.ndarray) else array("q", values)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])
