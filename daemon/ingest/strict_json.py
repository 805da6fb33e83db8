"""Strict JSON: one object, distinct keys, finite numbers, UTF-8, of bounded depth and size. What is refused has a reason.

Two parsers, one answer. The standard library's with hooks is the strict one, and slow. msgspec's is several times as fast,
refuses all that the strict one refuses but keys that come twice, and gives the same values. So its answer is taken where it is
sure that no key came twice: every string in the answer accounts for two quotation marks of the text, and a key that was
lost would leave two over. In any doubt the strict parser decides, and it alone says why a record is refused.
"""

import json
import math
import re
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec

from daemon.core.states import RejectReason
from daemon.core.stream import Reject

MAX_DEPTH = 64  # objects and arrays inside one another

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[\[\]{}]', re.DOTALL)
_KINDS = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


_FIRST, _LAST = itemgetter(0), itemgetter(-1)
_OPENING, _CLOSING = b"{}"


class Refused(Exception):
    def __init__(self, reason: RejectReason, detail: str) -> None:
        self.reject = Reject(reason, detail)


def parse_object(value: bytes | None, max_bytes: int) -> dict[str, Any]:
    """Raises Refused. `max_bytes` is the operator's kafka.max_record."""
    if value is None:
        raise Refused(RejectReason.NO_VALUE, "the record has no value (a tombstone)")
    if len(value) > max_bytes:
        raise Refused(RejectReason.TOO_BIG, f"the record has {len(value)} bytes; kafka.max_record is {max_bytes}")
    body = parse_fast(value)
    return parse_strictly(value) if body is None else body


def parse_fast(value: bytes) -> dict[str, Any] | None:
    """The object that the strict parser would give, or None where that is not sure."""
    if value.count(b"[") + value.count(b"{") > MAX_DEPTH:
        return None
    try:
        body = _FAST_JSON.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if type(body) is not dict:
        return None
    return body if _quotation_marks(value) == 2 * _strings(body) else None


def parse_many(values: Sequence[bytes], max_bytes: int) -> list[dict[str, Any]] | None:
    """What `parse_object` gives for each, all at once, for flat objects; None where that is in doubt.

    The values become the lines of one text. Each begins with a brace and ends with one, and inside of an object a closing brace, a
    line's end and an opening brace never follow each other. So none runs into the next, and when there are as many objects
    as values, each value is one object.
    """
    lengths = [*map(len, values)]
    if (
        0 in lengths
        or max(lengths) > max_bytes
        or {*map(_FIRST, values)} != {_OPENING}
        or {*map(_LAST, values)} != {_CLOSING}
    ):
        return None
    lines = b"\n".join(values)
    try:
        bodies = _FAST_JSON.decode_lines(lines)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if len(bodies) != len(values) or {*map(type, bodies)} != {dict}:
        return None
    kinds = [*map(type, chain.from_iterable(map(dict.values, bodies)))]
    if dict in kinds or list in kinds:
        return None
    return bodies if _quotation_marks(lines) == 2 * (len(kinds) + kinds.count(str)) else None


def _quotation_marks(text: bytes) -> int:
    """Those around strings. A pair of backslashes goes first: what is left before a mark makes it part of a string."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.count(b'"')


def _strings(body: dict[str, Any]) -> int:
    """How many strings, keys included, an object is written with."""
    kinds = [*map(type, body.values())]
    count = len(kinds) + kinds.count(str)
    if dict in kinds or list in kinds:
        count += sum(map(_strings_inside, body.values()))
    return count


def _strings_inside(value: Any) -> int:
    if type(value) is dict:
        return _strings(value)
    if type(value) is list:
        return sum(1 if type(one) is str else _strings_inside(one) for one in value)
    return 0


def parse_strictly(value: bytes) -> dict[str, Any]:
    """Raises Refused."""
    try:
        text = value.decode()
        _check_depth(text)
        body = _STRICT_JSON.decode(text)
    except UnicodeDecodeError as error:
        raise Refused(RejectReason.NOT_UTF8, f"byte {error.start} is not UTF-8: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise Refused(RejectReason.NOT_JSON, f"{error.msg} at character {error.pos}") from error
    except ValueError as error:  # the interpreter's limit on digits
        raise Refused(RejectReason.TOO_BIG, "an integer has too many digits") from error
    if type(body) is not dict:
        raise Refused(RejectReason.NOT_AN_OBJECT, f"the record is {kind(body)}, not an object")
    return body


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise Refused(RejectReason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} at character {found.start()}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Refused(RejectReason.DUPLICATE_KEY, f"key {short(twice)} is there more than once")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Refused(RejectReason.NON_FINITE, f"{short(text)} is not a finite number")
    return number


_STRICT_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)
_FAST_JSON = msgspec.json.Decoder()


def kind(value: Any) -> str:
    return "null" if value is None else _KINDS[type(value)]


def short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
