"""Examples as Arrow columns, built from whole lists at a time: DuckDB takes these in while other Python threads run.

The buffers are filled here and not by `pyarrow.array`, which imports pandas where that is installed: 90 MB for nothing.
"""

from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import pyarrow as pa

from daemon.core.stream import Example

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def example_columns(examples: Sequence[Example], first_seq: int) -> pa.Table:
    """The columns of the table `examples`; an empty subject stands for none."""
    positions = [example.position for example in examples]
    ingested = [example.ingested_at for example in examples]
    read_at = {at: _micros(at) for at in set(ingested)}
    columns = {
        "seq": _integers(range(first_seq, first_seq + len(examples))),
        "topic": _strings([position[0] for position in positions]),
        "part": _integers([position[1] for position in positions]),
        "off": _integers([position[2] for position in positions]),
        "id": _strings([example.id for example in examples]),
        "text": _strings([example.text for example in examples]),
        "label": _strings([example.label for example in examples]),
        "source": _strings([example.source for example in examples]),
        "split": _strings([example.split for example in examples]),
        "occurred_at": _times([_micros(example.occurred_at) for example in examples]),
        "ingested_at": _times([read_at[at] for at in ingested]),
        "subject": _strings([example.subject or "" for example in examples]),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _strings(values: Sequence[str]) -> pa.Array:
    joined = "".join(values)
    if joined.isascii():
        return _large_strings(joined.encode(), map(len, values))
    encoded = [value.encode() for value in values]
    return _large_strings(b"".join(encoded), map(len, encoded))


def _large_strings(content: bytes, lengths: Iterable[int]) -> pa.Array:
    offsets = array("q", accumulate(lengths, initial=0))
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(content))


def _integers(values: Iterable[int]) -> pa.Array:
    return _fixed(pa.int64(), values)


def _times(micros: Iterable[int]) -> pa.Array:
    return _fixed(pa.timestamp("us"), micros)


def _fixed(kind: pa.DataType, values: Iterable[int]) -> pa.Array:
    numbers = array("q", values)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND
