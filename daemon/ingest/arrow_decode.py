"""Records straight into columns, where they are surely fine: the fast way of `decode`, which has the last word on all others.

Arrow's JSON parser reads many values at once while other Python threads run. Told which fields to expect and of what kind, it
refuses what the strict parser refuses: other fields, other kinds, a key that comes twice, escapes that are none. It takes NaN and
infinities for numbers and does not look at UTF-8: both are checked afterwards. Which fields to expect the first record says.
"""

from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from daemon.core.states import Split
from daemon.core.stream import kafka_topic
from daemon.ingest.decode import FIRST_MILLISECONDS, MAX_NAME_CHARS, Decoder, moment_of
from daemon.ingest.record_columns import NO_TIME, RecordColumns, Whole, whole
from daemon.ingest.splits import split_numbers
from daemon.ingest.strict_json import Refused, parse_fast, parse_object
from daemon.runtime.arrow_examples import (
    ExampleColumns,
    integers,
    micros,
    one_of,
    same_string,
    strings,
    times,
)

AT_ONCE = 2 << 20  # bytes of values: fewer cost more each
IN_DOUBT = 2000  # records: where one of more is in doubt, so many are looked at once more
BLOCK = 1 << 18  # bytes of values for one of Arrow's threads; only short records gain by several

_KINDS = {str: pa.large_string(), int: pa.float64(), float: pa.float64(), bool: pa.bool_(), type(None): pa.null()}
_FIRST, _LAST = itemgetter(0), itemgetter(-1)
_OPENING, _CLOSING = b"{}"


class _InDoubt(Exception):
    pass


def decoded_columns(records: RecordColumns, decoder: Decoder, now: datetime) -> ExampleColumns | None:
    """What `decoder` makes of records that are all surely examples; None where one of them may not be."""
    if decoder.parse is not parse_object or decoder.halves or decoder.hash_of:
        return None
    try:
        return _decoded(records, decoder, now)
    except (_InDoubt, Refused, pa.ArrowException, ValueError, OverflowError, TypeError):
        return None


def _decoded(records: RecordColumns, decoder: Decoder, now: datetime) -> ExampleColumns:
    fields, count = decoder.fields, len(records)
    if None in records.values:
        raise _InDoubt
    found = _parsed(cast(Sequence[bytes], records.values), decoder)
    ids, texts, labels = (found.get(path) for path in (fields.id, fields.text, fields.label))
    sources, given_splits = (found.get(path) for path in (fields.source, fields.split))
    if ids is None or texts is None or labels is None or (given_splits and given_splits.null_count < count):
        raise _InDoubt
    if ids.type == pa.int64():
        ids = ids.cast(pa.large_string())
    _sure(ids, MAX_NAME_CHARS)
    _sure(texts, decoder.records.max_text_chars)
    for label in _distinct(labels):
        decoder.label(label)
    sources = _sources(sources, records)
    for source in _distinct(sources):
        decoder.source(source)
    keys = texts if decoder.splits.key == "text" else ids
    columns = {
        "topic": _by_partition(records, [partition.topic for partition in records.partitions]),
        "part": integers(whole(partition.partition for partition in records.partitions)[records.places]),
        "off": integers(records.offsets),
        "id": ids,
        "text": texts,
        "label": labels,
        "occurred_at": times(_micros(records, found.get(fields.occurred_at))),
        "ingested_at": times(np.full(count, micros(now))),
        "source": sources,
        "split": one_of([*Split], split_numbers(decoder.splits, keys.to_pylist())),
        "subject": same_string("", count),
    }
    return ExampleColumns(pa.table(columns))


def _parsed(values: Sequence[bytes], decoder: Decoder) -> dict[str | None, pa.Array]:
    """The columns of flat objects, by field. Raises where one is in doubt.

    The values become the lines of one text. Each begins with a brace and ends with one, and a flat object ends with its first
    closing brace outside of strings, in which there is no line's end. So none runs into the next, and when there are as
    many objects as values, each value is one object.
    """
    sizes = [*map(len, values)]
    if (
        min(sizes) == 0
        or max(sizes) > decoder.max_record
        or {*map(_FIRST, values)} != {_OPENING}
        or {*map(_LAST, values)} != {_CLOSING}
    ):
        raise _InDoubt
    lines = b"\n".join(values)
    divided = len(values) > IN_DOUBT
    table = pyarrow.json.read_json(
        pa.BufferReader(lines),
        read_options=pyarrow.json.ReadOptions(
            use_threads=divided, block_size=max(BLOCK, 2 * max(sizes)) if divided else len(lines) + 1
        ),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=_schema(values[0], decoder), unexpected_field_behavior="error"
        ),
        memory_pool=pa.system_memory_pool(),  # Arrow's own would give back what the next batch needs again
    )
    if table.num_rows != len(values):
        raise _InDoubt
    table.validate(full=True)
    found = {path: table.column(path).combine_chunks() for path in table.column_names}
    if any(
        False in pc.is_finite(column).unique().to_pylist() for column in found.values() if column.type == pa.float64()
    ):
        raise _InDoubt
    return {path: column for path, column in found.items() if "." not in path}  # a dotted name is of something nested


def _schema(value: bytes, decoder: Decoder) -> pa.Schema:
    """The fields and their kinds. Numbers that nobody wants may be whole or not."""
    body = parse_fast(value)
    if body is None or not _KINDS.keys() >= {*map(type, body.values())}:
        raise _InDoubt
    kinds: dict[str | None, pa.DataType] = {path: _KINDS[type(found)] for path, found in body.items()}
    fields = decoder.fields
    for path in (fields.id, fields.occurred_at):
        if path in body and type(body[path]) in (int, type(None)):
            kinds[path] = pa.int64()
    for path in (fields.source, fields.split):
        if path in body and body[path] is None:
            kinds[path] = pa.large_string()
    return pa.schema(list(kinds.items()))


def _sure(column: pa.Array, longest: int) -> None:
    """Raises unless all are strings, not empty, not only white space, and have at most so many characters."""
    if column.null_count or column.type != pa.large_string():
        raise _InDoubt
    _, ends, content = column.buffers()
    offsets = np.frombuffer(ends, np.int64, len(column) + 1, 8 * column.offset)
    sizes = np.diff(offsets)
    if sizes.min() == 0 or (sizes.max() > longest and max(pc.utf8_length(column).to_pylist()) > longest):
        raise _InDoubt
    first = np.frombuffer(content, np.uint8)[offsets[:-1]]
    unclear = np.flatnonzero((first <= ord(" ")) | (first > ord("~")))
    if unclear.size and any(map(str.isspace, column.take(integers(unclear)).to_pylist())):
        raise _InDoubt


def _distinct(column: pa.Array) -> list[Any]:
    return list(column.unique().to_pylist())


def _sources(column: pa.Array | None, records: RecordColumns) -> pa.Array:
    topics = _by_partition(records, [kafka_topic(partition.topic) for partition in records.partitions])
    if column is None or column.null_count == len(column):
        return topics
    return pc.coalesce(column, topics)


def _micros(records: RecordColumns, column: pa.Array | None) -> Whole:
    """When each happened, by what it says itself or by its broker. Raises where one is in doubt."""
    if column is not None and column.type == pa.int64() and not column.null_count:
        seconds = np.frombuffer(column.buffers()[1], np.int64, len(column), 8 * column.offset)
        if seconds.min() >= 0 and seconds.max() < FIRST_MILLISECONDS:
            return seconds * 1_000_000
    told = [] if column is None else column.to_pylist()
    said = whole(NO_TIME if at is None else micros(moment_of("", at)) for at in told) if told else NO_TIME
    happened = np.where(said == NO_TIME, records.stamps, said)
    if (happened == NO_TIME).any():
        raise _InDoubt
    return happened


def _by_partition(records: RecordColumns, names: Sequence[str]) -> pa.Array:
    """For each record the name that is given for its partition."""
    if len({*names}) == 1:
        return same_string(names[0], len(records))
    return strings(names).take(integers(records.places))
