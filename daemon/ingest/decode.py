"""One record in; one example, or the reason why not, out. Pure: a bad record is data, never an exception.

The standard library's parser with hooks is the strict one: it refuses duplicate keys and what is no finite number. A faster
parser that lets duplicate keys pass is no faster once they are looked for.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from daemon.config import FieldNames, Splits
from daemon.core.states import RejectReason, Split
from daemon.core.types import Example, Record, Reject
from daemon.ingest.splits import split_of
from daemon.policy.schema import RecordsPolicy

MAX_DEPTH = 64  # objects and arrays inside one another
MAX_NAME_CHARS = 512  # of an id, a label, a source

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MILLISECONDS = 10**11  # as seconds this is the year 5138, as milliseconds 1973
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[\[\]{}]', re.DOTALL)

_KINDS = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


class _Refused(Exception):
    def __init__(self, reason: RejectReason, detail: str) -> None:
        self.reject = Reject(reason, detail)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Everything a record is read by; built again when the policy's part of it changes. `max_record` is in bytes."""

    fields: FieldNames
    labels: frozenset[str]
    records: RecordsPolicy
    splits: Splits
    max_record: int

    def decode(self, record: Record, now: datetime) -> Example | Reject:
        """`now` is when the record was read; it becomes `ingested_at`."""
        try:
            return self._example(parse_object(record.value, self.max_record), record, now)
        except _Refused as refused:
            return refused.reject

    def _example(self, body: dict[str, Any], record: Record, now: datetime) -> Example:
        fields = self.fields
        example_id = _id(fields.id, body)
        return Example(
            position=record.position,
            id=example_id,
            text=self._text(body),
            label=self._label(body),
            occurred_at=_time(fields.occurred_at, body) or _broker_time(record),
            ingested_at=now,
            source=_optional_name(fields.source, body) or record.position.topic,
            split=_split(fields.split, body) or split_of(example_id, self.splits),
        )

    def _text(self, body: Mapping[str, Any]) -> str:
        field = self.fields.text
        text = _string(field, find(field, body))
        if len(text) > self.records.max_text_chars:
            raise _Refused(
                RejectReason.TOO_BIG,
                f"field '{field}' has {len(text)} characters; records.max_text_chars is {self.records.max_text_chars}",
            )
        if not text.strip():
            raise _Refused(RejectReason.EMPTY_TEXT, f"field '{field}' is empty or only white space")
        return text

    def _label(self, body: Mapping[str, Any]) -> str:
        field = self.fields.label
        label = _name(field, find(field, body))
        if self.labels and label not in self.labels and self.records.unknown_label == "dead_letter":
            raise _Refused(
                RejectReason.UNKNOWN_LABEL,
                f"field '{field}' is {_short(label)}, which task.labels does not list; "
                "list it, or set records.unknown_label to accept",
            )
        return label


def parse_object(value: bytes | None, max_bytes: int) -> dict[str, Any]:
    """Strict JSON: one object, distinct keys, finite numbers, UTF-8, at most MAX_DEPTH deep. Raises _Refused."""
    if value is None:
        raise _Refused(RejectReason.NO_VALUE, "the record has no value (a tombstone)")
    if len(value) > max_bytes:
        raise _Refused(RejectReason.TOO_BIG, f"the record has {len(value)} bytes; kafka.max_record is {max_bytes}")
    try:
        text = value.decode()
        _check_depth(text)
        body = _STRICT_JSON.decode(text)
    except UnicodeDecodeError as error:
        raise _Refused(RejectReason.NOT_UTF8, f"byte {error.start} is not UTF-8: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise _Refused(RejectReason.NOT_JSON, f"{error.msg} at character {error.pos}") from error
    except ValueError as error:  # the interpreter's limit on digits
        raise _Refused(RejectReason.TOO_BIG, "an integer has too many digits") from error
    if type(body) is not dict:
        raise _Refused(RejectReason.NOT_AN_OBJECT, f"the record is {_kind(body)}, not an object")
    return body


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise _Refused(RejectReason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} at character {found.start()}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(RejectReason.DUPLICATE_KEY, f"key {_short(twice)} is there more than once")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused(RejectReason.NON_FINITE, f"{_short(text)} is not a finite number")
    return number


_STRICT_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)


def find(field: str, body: Mapping[str, Any]) -> Any | None:
    """The value behind a name of the operator's, "meta.lang" reaching into objects; None where it is absent or null."""
    node: Any = body
    for key in _keys(field):
        if type(node) is not dict:
            return None
        node = node.get(key)
    return node


@cache
def _keys(field: str) -> tuple[str, ...]:
    return tuple(field.split("."))


def _string(field: str, value: Any) -> str:
    if value is None:
        raise _Refused(RejectReason.MISSING_FIELD, f"field '{field}' is missing or null")
    if type(value) is not str:
        raise _Refused(RejectReason.WRONG_TYPE, f"field '{field}' is {_kind(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused(
            RejectReason.BAD_UNICODE, f"field '{field}' has half a surrogate pair at character {error.start}"
        ) from error
    return value


def _name(field: str, value: Any) -> str:
    name = _string(field, value)
    if not name.strip():
        raise _Refused(RejectReason.MISSING_FIELD, f"field '{field}' is empty or only white space")
    if len(name) > MAX_NAME_CHARS:
        raise _Refused(
            RejectReason.TOO_BIG, f"field '{field}' has {len(name)} characters; the limit is {MAX_NAME_CHARS}"
        )
    return name


def _id(field: str, body: Mapping[str, Any]) -> str:
    value = find(field, body)
    return _name(field, str(value) if type(value) is int else value)


def _optional_name(field: str | None, body: Mapping[str, Any]) -> str | None:
    value = None if field is None else find(field, body)
    return None if field is None or value is None else _name(field, value)


def _split(field: str | None, body: Mapping[str, Any]) -> Split | None:
    name = _optional_name(field, body)
    if name is None:
        return None
    try:
        return Split(name)
    except ValueError as error:
        raise _Refused(RejectReason.BAD_SPLIT, f"split is {_short(name)}, not one of {', '.join(Split)}") from error


def _time(field: str | None, body: Mapping[str, Any]) -> datetime | None:
    value = None if field is None else find(field, body)
    if field is None or value is None:
        return None
    try:
        if type(value) is str:
            return _from_iso(value)
        if type(value) in (int, float):
            return _from_unix(value)
    except (ValueError, OverflowError) as error:
        raise _Refused(
            RejectReason.BAD_TIME,
            f"field '{field}' is {_short(value)}: neither ISO 8601 nor Unix seconds or milliseconds up to the year 9999",
        ) from error
    raise _Refused(RejectReason.WRONG_TYPE, f"field '{field}' is {_kind(value)}, not a string or a number")


def _broker_time(record: Record) -> datetime:
    if record.timestamp is None:
        raise _Refused(RejectReason.BAD_TIME, "neither the record nor the broker says when it happened")
    return record.timestamp


def _from_iso(text: str) -> datetime:
    """A time without an offset is taken as UTC."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _from_unix(number: float) -> datetime:
    if abs(number) >= _FIRST_MILLISECONDS:
        return _EPOCH + timedelta(milliseconds=number)
    return _EPOCH + timedelta(seconds=number)


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS[type(value)]


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
