"""When a dead letter is about a person: whatever they are called, and however their name was written."""

import json
from io import BytesIO
from uuid import UUID

import pytest
from fastavro import parse_schema, schemaless_writer

from daemon.control.mentions import holds
from daemon.core.states import RejectReason
from daemon.core.stream import DeadLetter, Position
from daemon.ingest.redrive import strings_in
from daemon.testing.clock import START

PERSON = {"type": "record", "name": "R", "fields": [{"name": "person", "type": "string"}]}


def letter(value: bytes | None, *, key: bytes | None = None, detail: str = "") -> DeadLetter:
    return DeadLetter(Position("t", 0, 0), RejectReason.NOT_JSON, detail, key, value, START)


def about(person: str, letter: DeadLetter) -> bool:
    return holds(person, lambda _: ())(letter)


def avro(person: str) -> bytes:
    stream = BytesIO()
    schemaless_writer(stream, parse_schema(PERSON), {"person": person})
    return b"\0\0\0\0\7" + stream.getvalue()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'{"person": "7"}', True),
        (b'{"person": 7}', True),
        (b"7", True),
        (b'{"person": "17"}', False),
        (b'{"person": "id7"}', False),
        (b'{"person": "7', True),
        (None, False),
    ],
)
def test_in_json_a_name_counts_as_a_word(value: bytes | None, found: bool) -> None:
    assert about("7", letter(value)) is found


@pytest.mark.parametrize("length", range(1, 70))
def test_in_avro_a_name_is_found_whatever_its_length_looks_like(length: int) -> None:
    assert about("n" * length, letter(avro("n" * length)))


@pytest.mark.parametrize(
    ("person", "value"),
    [
        ("J\u00e9r\u00f4me", rb'{"person": "J\u00E9r\u00F4me"}'),
        ("J\u00e9r\u00f4me", rb'{"person": "J\u00e9r\u00F4me'),
        ("a/b", rb'{"person": "a\/b"}'),
        ("O'Neil", rb'{"person": "O\u0027Neil"}'),
        ("\U0001f600 Ann", rb'{"person": "\uD83D\ude00 Ann"}'),
        ("DOMAIN\\nick", rb'{"person": "DOMAIN\\nick"}'),
        ("DOMAIN\\nick", avro("DOMAIN\\nick")),
        ("Zo\u00eb", json.dumps({"payload": json.dumps({"person": "Zo\u00eb"})}).encode()),
        ("Zo\u00eb", "{'person': 'Zo\u00eb'}".encode("latin-1")),
        ("Ann", '{"person": "Ann"}'.encode("utf-16")),
    ],
)
def test_a_name_is_found_however_it_was_written(person: str, value: bytes) -> None:
    assert about(person, letter(value))
    assert not about("somebody else", letter(value))


def test_a_key_and_a_reason_are_looked_at_too() -> None:
    assert about("ann", letter(None, key=b"customer ann"))
    assert not about("ann", letter(None, key=b"customer-anna")), "a key is text where it can be"
    assert about("ann", letter(None, key=b"\x06ann\x02"))
    assert about("ann", letter(None, detail="field 'label' is 'ann'"))
    assert not about("7", letter(None, detail="the record has 75 bytes"))


def test_what_only_the_schema_tells_is_asked_of_it() -> None:
    person = UUID(int=7 << 100)
    binary = letter(b"\0\0\0\0\7" + person.bytes)
    said = {"outer": [{"person": str(person)}], "age": 41}
    assert not about(str(person), binary)
    assert holds(str(person), lambda one: strings_in(one.value, lambda *_: said, 99))(binary)
    assert holds("41", lambda one: strings_in(one.value, lambda *_: said, 99))(binary)
