"""How many records lack a field that the policy watches. Their objects are read once more for it, so that nobody pays who does
not ask."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from daemon.core.stream import Tally, kafka_topic
from daemon.ingest.breaker import NULLS
from daemon.ingest.decode import TOGETHER, Body, Decoder, finder
from daemon.ingest.record_columns import RecordColumns
from daemon.ingest.strict_json import Refused, parse_many, parse_object


def null_tallies(records: RecordColumns, decoder: Decoder) -> Mapping[str, Tally]:
    """By check; among the records that are objects and whole examples. A field that kafka.fields does not name is always null."""
    watched = decoder.records.quality.max_null_share
    if not watched:
        return {}
    whole = [kafka_topic(partition.topic) not in decoder.halves for partition in records.partitions]
    values = [value for value, place in zip(records.values, records.places.tolist(), strict=True) if whole[place]]
    bodies = _objects([value for value in values if value is not None], decoder)
    return {NULLS + field: _nulls(bodies, getattr(decoder.fields, field)) for field in watched}


def _nulls(bodies: Sequence[Body], path: str | None) -> Tally:
    values = [*map(finder(path), bodies)]
    empty = sum(type(value) is str and not value.strip() for value in values)
    return Tally(values.count(None) + empty, len(values))


def _objects(values: Sequence[bytes], decoder: Decoder) -> Sequence[Body]:
    bodies: list[Body] = []
    for first in range(0, len(values), TOGETHER):
        some = values[first : first + TOGETHER]
        at_once = parse_many(some, decoder.max_record) if decoder.parse is parse_object else None
        bodies += _one_by_one(some, decoder) if at_once is None else at_once
    return bodies


def _one_by_one(values: Sequence[bytes], decoder: Decoder) -> Iterator[Body]:
    for value in values:
        with suppress(Refused):
            yield decoder.parse(value, decoder.max_record)
