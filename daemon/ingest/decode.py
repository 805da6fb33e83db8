"""One record in; one example, a half of one, or the reason why neither, out. Pure: a bad record is data, never an exception.

Nearly every record is fine, and hundreds of thousands come a second. So each field is first held against a few cheap conditions
under which it is surely good; where one does not hold, the function that knows every rule has the last word. Plain records take
a quicker way still: `arrow_decode`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import methodcaller
from typing import Any, cast

from daemon.config import FieldNames, Splits
from daemon.core.states import RejectReason, SkipReason, Split
from daemon.core.stream import Example, Half, Record, Reject, kafka_topic
from daemon.ingest.splits import splitter
from daemon.ingest.strict_json import Refused, kind, parse_many, parse_object, short
from daemon.policy.schema import RecordsPolicy

MAX_NAME_CHARS = 512  # of an id, a label, a source
TOGETHER = 500  # records decoded at once; where one of them is bad, so many are decoded one by one

Body = dict[str, Any]
Parse = Callable[[bytes | None, int], Body]
Decoded = Example | Half | Reject | SkipReason
DecodeHalf = Callable[[Body, Record, datetime], Half]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MILLISECONDS = 10**11  # as seconds this is the year 5138, as milliseconds 1973


@dataclass(frozen=True, slots=True)
class Decoder:
    """Everything a record is read by; built again when the policy's part of it changes. `max_record` is in bytes.

    `parse` gives a record's object or raises Refused. `halves` are the topics whose records are halves of examples, and how
    theirs are read; that raises Refused too. `hash_of` turns a person's name into what is stored, where fields.subject is set.
    """

    fields: FieldNames
    labels: frozenset[str]
    records: RecordsPolicy
    splits: Splits
    max_record: int
    parse: Parse = parse_object
    halves: Mapping[str, DecodeHalf] = field(default_factory=dict)
    hash_of: Callable[[str], str] | None = None

    def decode(self, record: Record, now: datetime) -> Decoded:
        """`now` is when the record was read; it becomes `ingested_at`."""
        return self.reader(now)(record)

    def decode_all(self, records: Sequence[Record], now: datetime) -> list[Decoded]:
        """`decode` of each, much faster where all is well."""
        decoded: list[Decoded] = []
        for first in range(0, len(records), TOGETHER):
            some = records[first : first + TOGETHER]
            decoded += self._examples(some, now) or map(self.reader(now), some)
        return decoded

    def _examples(self, records: Sequence[Record], now: datetime) -> list[Example] | None:
        """Of records that are all surely fine; None where one of them may not be."""
        values = [record.value for record in records]
        if self.parse is not parse_object or self.halves or self.hash_of or None in values:
            return None
        bodies = parse_many(cast(list[bytes], values), self.max_record)
        if bodies is None:
            return None
        fields = self.fields
        ids, texts, labels, times, sources, splits = (
            [*map(finder(path), bodies)]
            for path in (fields.id, fields.text, fields.label, fields.occurred_at, fields.source, fields.split)
        )
        if None in sources:
            topics = {topic: kafka_topic(topic) for topic in {record.position.topic for record in records}}
            sources = [
                topics[record.position.topic] if source is None else source
                for record, source in zip(records, sources, strict=True)
            ]
        if not (_good(ids, MAX_NAME_CHARS) and _good(texts, self.records.max_text_chars) and {*splits} == {None}):
            return None
        try:
            for label in {*labels}:
                self.label(label)
            for source in {*sources}:
                self.source(source)
            happened = moments(records, times)
        except (Refused, ValueError, OverflowError, TypeError):  # TypeError: a name that is no string
            return None
        return [
            Example(record.position, example_id, text, label, at, now, source, split)
            for record, example_id, text, label, at, source, split in zip(
                records, ids, texts, labels, happened, sources, map(splitter(self.splits), ids, texts), strict=True
            )
        ]

    def reader(self, now: datetime) -> Callable[[Record], Decoded]:
        """`decode` for many records that were read together."""
        parse, max_record, halves = self.parse, self.max_record, self.halves
        skips_tombstones = self.records.tombstone == "skip"
        example = self._example_reader(now)

        def read(record: Record) -> Decoded:
            if record.value is None and skips_tombstones:
                return SkipReason.TOMBSTONE
            try:
                body = parse(record.value, max_record)
                if halves and (half := halves.get(kafka_topic(record.position.topic))):
                    return half(body, record, now)
                return example(body, record)
            except Refused as refused:
                return refused.reject

        return read

    def _example_reader(self, now: datetime) -> Callable[[Body, Record], Example]:
        fields, longest = self.fields, self.records.max_text_chars
        id_in, text_in, label_in = finder(fields.id), finder(fields.text), finder(fields.label)
        time_in, source_in, split_in = finder(fields.occurred_at), finder(fields.source), finder(fields.split)
        split_of, hash_of = splitter(self.splits), self.hash_of
        good_labels: set[str] = set()
        good_sources: set[str] = set()

        def read(body: Body, record: Record) -> Example:
            example_id, text, label, source = id_in(body), text_in(body), label_in(body), source_in(body)
            if (
                not (type(example_id) is str and example_id.isascii() and 0 < len(example_id) <= 64)
                or example_id.isspace()
            ):
                example_id = _id(fields.id, example_id)
            if not (type(text) is str and text.isascii() and 0 < len(text) <= longest) or text.isspace():
                text = self._text(text)
            if type(label) is not str or label not in good_labels:
                good_labels.add(label := self.label(label))
            at = time_in(body)
            at = broker_time(record) if at is None else moment_of(fields.occurred_at or "", at)
            if source is None:
                source = kafka_topic(record.position.topic)
            if type(source) is not str or source not in good_sources:
                good_sources.add(source := self.source(source))
            split = split_in(body)
            split = split_of(example_id, text) if split is None else _split(fields.split or "", split)
            subject = hash_of(person) if hash_of and (person := optional_name(fields.subject, body)) else None
            return Example(record.position, example_id, text, label, at, now, source, split, subject)

        return read

    def _text(self, value: Any) -> str:
        text = string(self.fields.text, value)
        if len(text) > self.records.max_text_chars:
            raise Refused(
                RejectReason.TOO_BIG,
                f"field '{self.fields.text}' has {len(text)} characters; "
                f"records.max_text_chars is {self.records.max_text_chars}",
            )
        if not text.strip():
            raise Refused(RejectReason.EMPTY_TEXT, f"field '{self.fields.text}' is empty or only white space")
        return text

    def label(self, value: Any) -> str:
        """Raises Refused where the value is none that may be stored."""
        return listed(name(self.fields.label, value), self.labels, self.records)

    def source(self, value: Any) -> str:
        """Raises Refused where the value is none that may be stored."""
        return trusted(name(self.fields.source or "", value), self.records)


def listed(label: str, labels: Collection[str], records: RecordsPolicy) -> str:
    """Raises Refused where only labels that are listed are taken, and this is none of them. Where none is listed all are taken."""
    if records.unknown_label == "dead_letter" and labels and label not in labels:
        raise Refused(
            RejectReason.UNKNOWN_LABEL,
            f"{short(label)} is a label that task.labels does not list; "
            "list it, or set records.unknown_label to quarantine or accept",
        )
    return label


def trusted(source: str, records: RecordsPolicy) -> str:
    """Raises Refused where only sources that are named are taken, and this is none of them."""
    if records.new_sources == "dead_letter" and source not in records.trusted_sources:
        raise Refused(
            RejectReason.UNKNOWN_SOURCE,
            f"{short(source)} is a source that records.trusted_sources does not name; "
            "name it, or set records.new_sources to quarantine or accept",
        )
    return source


def _good(column: Sequence[Any], longest: int) -> bool:
    """Whether all are strings, not empty, not only white space, not too long. The fast parser makes no half surrogates."""
    if {*map(type, column)} != {str}:
        return False
    lengths = {*map(len, column)}
    return min(lengths) > 0 and max(lengths) <= longest and True not in map(str.isspace, column)


def moments(records: Sequence[Record], times: Sequence[Any]) -> list[datetime]:
    """When each happened, by what it says itself or by its broker. Raises where one is in doubt."""
    if {*map(type, times)} == {int} and min(times) >= 0 and max(times) < FIRST_MILLISECONDS:
        from_seconds = datetime.fromtimestamp
        return [from_seconds(seconds, UTC) for seconds in times]
    return [broker_time(record) if at is None else moment_of("", at) for record, at in zip(records, times, strict=True)]


@cache
def finder(path: str | None) -> Callable[[Body], Any]:
    """What finds the value behind a name of the operator's, "meta.lang" reaching into objects; None where it is absent or null."""
    if path is None:
        return lambda body: None
    first, *deeper = path.split(".")
    if not deeper:
        return methodcaller("get", first)

    def find(body: Body) -> Any:
        node = body.get(first)
        for key in deeper:
            if type(node) is not dict:
                return None
            node = node.get(key)
        return node

    return find


def string(path: str, value: Any) -> str:
    if value is None:
        raise Refused(RejectReason.MISSING_FIELD, f"field '{path}' is missing or null")
    if type(value) is not str:
        raise Refused(RejectReason.WRONG_TYPE, f"field '{path}' is {kind(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            RejectReason.BAD_UNICODE, f"field '{path}' has half a surrogate pair at character {error.start}"
        ) from error
    return value


def name(path: str, value: Any) -> str:
    found = string(path, value)
    if not found.strip():
        raise Refused(RejectReason.MISSING_FIELD, f"field '{path}' is empty or only white space")
    if len(found) > MAX_NAME_CHARS:
        raise Refused(
            RejectReason.TOO_BIG, f"field '{path}' has {len(found)} characters; the limit is {MAX_NAME_CHARS}"
        )
    return found


def id_of(path: str, body: Body) -> str:
    return _id(path, finder(path)(body))


def optional_name(path: str | None, body: Body) -> str | None:
    value = finder(path)(body)
    return None if path is None or value is None else name(path, value)


def time(path: str | None, body: Body) -> datetime | None:
    """When it happened, as far as the record itself says."""
    value = finder(path)(body)
    return None if path is None or value is None else moment_of(path, value)


def broker_time(record: Record) -> datetime:
    if record.timestamp is None:
        raise Refused(RejectReason.BAD_TIME, "neither the record nor the broker says when it happened")
    return record.timestamp


def _id(path: str, value: Any) -> str:
    return name(path, str(value) if type(value) is int else value)


def _split(path: str, value: Any) -> Split:
    found = name(path, value)
    try:
        return Split(found)
    except ValueError as error:
        raise Refused(RejectReason.BAD_SPLIT, f"split is {short(found)}, not one of {', '.join(Split)}") from error


def moment_of(path: str, value: Any) -> datetime:
    try:
        if type(value) is str:
            return _from_iso(value)
        if type(value) in (int, float):
            return _from_unix(value)
    except (ValueError, OverflowError) as error:
        raise Refused(
            RejectReason.BAD_TIME,
            f"field '{path}' is {short(value)}: neither ISO 8601 nor Unix seconds or milliseconds up to the year 9999",
        ) from error
    raise Refused(RejectReason.WRONG_TYPE, f"field '{path}' is {kind(value)}, not a string or a number")


def _from_iso(text: str) -> datetime:
    """A time without an offset is taken as UTC."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _from_unix(number: float) -> datetime:
    if abs(number) >= FIRST_MILLISECONDS:
        return _EPOCH + timedelta(milliseconds=number)
    return _EPOCH + timedelta(seconds=number)
