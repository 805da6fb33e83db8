"""The fast parser never says anything else than the strict one."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.core.stream import Reject
from daemon.ingest.strict_json import MAX_DEPTH, Refused, parse_fast, parse_many, parse_strictly


def strictly(value: bytes) -> dict[str, Any] | Reject:
    try:
        return parse_strictly(value)
    except Refused as refused:
        return refused.reject


def same(one: object, other: object) -> bool:
    """Equal, and of the same types: 1 is neither True nor 1.0 here, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.copysign(1, one) == math.copysign(1, other) and one == other
    return one == other


def check(value: bytes) -> None:
    fast = parse_fast(value)
    assert fast is None or same(fast, strictly(value))


@pytest.mark.parametrize(
    "body",
    [
        {"id": "1", "text": "hello", "label": "ham", "more": [1, "two", {"three": None}]},
        {"text": 'he said "hi" \\ and left\\', "tab": "a\tb", "emoji": "🤖", 'key with "quotes\\': 1},
        {},
    ],
)
def test_plain_records_take_the_fast_way(body: dict[str, Any]) -> None:
    for written in (json.dumps(body), json.dumps(body, ensure_ascii=False, indent=1)):
        assert same(parse_fast(written.encode()), body)


@pytest.mark.parametrize(
    "value",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": "x", "a" : "x"}',
        b'{"a": "", "\\u0061": ""}',
        b'{"a": "\\\\", "a": "\\\\"}',
        b'{"a\\"": 1, "a\\u0022": 2}',
        b'{"b": {"a": [], "a": []}}',
        b'{"b": [{"a": 1, "a": "1"}]}',
        b'{"a": {"x": "1"}, "a": 2}',
        b'{"": 1, "": 2}',
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\x01"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b"[1]",
        b'"{}"',
        b"",
    ],
)
def test_whatever_is_in_doubt_is_left_to_the_strict_parser(value: bytes) -> None:
    assert parse_fast(value) is None


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\ \nau0061e-+.9tfn', max_size=40).map(str.encode))
@example(b'{"a":"\\\\\\"","b":"\\\\"}')
@example(b'\xef\xbb\xbf{"a":1}')
def test_on_any_bytes_both_agree(value: bytes) -> None:
    check(value)


space = st.sampled_from(["", " ", "\n", "\t", "\r", "  "])
keys = st.sampled_from(
    ['"a"', '"\\u0061"', '"b"', '"a\\""', '"a\\u0022"', '"\\\\"', '"\\u005c"', '""', '"\\/"', '"/"', '"é"']
)
any_text = st.text(st.characters(exclude_categories=()), max_size=6)
numbers = (
    st.integers().map(str)
    | st.integers(min_value=10**17, max_value=10**40).map(str)
    | st.floats(allow_nan=False).map(json.dumps)
    | st.from_regex(r"-?(0|[1-9]\d{0,25})(\.\d{1,30})?([eE][+-]?\d{1,3})?", fullmatch=True)
    | st.sampled_from(["-0", "-0.0", "NaN", "Infinity", "1e309", "18446744073709551616", "-9223372036854775809"])
)
strings = st.one_of(any_text.map(json.dumps), any_text.map(lambda text: json.dumps(text, ensure_ascii=False)))
leaves = strings | numbers | st.sampled_from(["true", "false", "null"]) | keys


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """Written member by member, so that keys come twice, in several spellings and with any white space."""
    members = draw(st.lists(st.tuples(space, keys | strings, space, space, values, space), max_size=4))
    return "{" + ",".join(f"{a}{key}{b}:{c}{value}{d}" for a, key, b, c, value, d in members) + "}"


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")


documents = objects(st.recursive(leaves, lambda inner: objects(inner) | arrays(inner), max_leaves=8))


@given(documents, space)
def test_on_any_json_both_agree(document: str, after: str) -> None:
    check((document + after).encode(errors="surrogatepass"))


@given(documents, st.data())
def test_on_json_with_one_byte_changed_both_agree(document: str, data: st.DataObject) -> None:
    value = bytearray(document.encode(errors="surrogatepass"))
    value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(value))


flat = objects(leaves).map(lambda document: document.encode(errors="surrogatepass"))
pieces = st.sampled_from(
    [
        b"{}",
        b'{"a":1}',
        b'{"a":1}{"b":2}',
        b'{"x":[{}',
        b"{}]}",
        b'{"x":[{},',
        b'{"a":"}',
        b'{"}',
        b"",
        b"\n",
        b'{"a":\n1}',
        b"[1]",
    ]
)


@given(st.lists(flat | pieces, min_size=1, max_size=6))
@example([b'{"a":1}{"b":2}', b'{"x":[{}', b"{}]}"])
@example([b'{"x":[{},', b'{"a":1}\n{"b":2}', b"{}]}"])
def test_many_at_once_are_the_same_as_one_by_one(values: list[bytes]) -> None:
    """No value may run into the next, or be two: each object stands where its value does."""
    bodies = parse_many(values, 1 << 20)
    if bodies is not None:
        assert len(bodies) == len(values)
        assert all(same(body, strictly(value)) for body, value in zip(bodies, values, strict=True))


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.none(), max_size=5), min_size=1
    )
)
def test_many_honest_records_are_read_at_once(bodies: list[dict[str, Any]]) -> None:
    assert same(parse_many([json.dumps(body).encode() for body in bodies], 1 << 20), bodies)


def test_of_many_none_may_be_too_big() -> None:
    assert parse_many([b'{"a":1}', b'{"a":"xxxxxxxx"}'], 10) is None


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.none(), max_size=5))
def test_no_honest_record_is_slow(body: dict[str, Any]) -> None:
    assert same(parse_fast(json.dumps(body).encode()), body)
