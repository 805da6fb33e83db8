"""Decoding by column: whatever comes, it says what decoding one by one says, or nothing; and plain records it does not miss."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import FieldNames, Splits
from daemon.core.stream import Position, Record
from daemon.ingest.arrow_decode import decoded_columns
from daemon.ingest.assemble import assemble
from daemon.ingest.decode import Decoder
from daemon.ingest.record_columns import RecordColumns
from daemon.policy.schema import RecordsPolicy
from daemon.testing.clock import START

BROKER_TIME = datetime(2020, 2, 3, 4, 5, tzinfo=UTC)
GOOD = b'{"id":"1","text":"buy now","label":"spam"}'


def decoder(**changes: Any) -> Decoder:
    fields: dict[str, Any] = {
        "fields": FieldNames(),
        "labels": frozenset({"spam", "ham"}),
        "records": RecordsPolicy(unknown_label="dead_letter", tombstone="dead_letter", max_text_chars=30),
        "splits": Splits(),
        "max_record": 10_000,
    }
    return Decoder(**{**fields, **changes})


def given_records(values: list[bytes | None], time: datetime | None = BROKER_TIME) -> list[Record]:
    return [Record(Position("mails~2", n % 2, n), time, None, value) for n, value in enumerate(values)]


def agrees(records: list[Record], decoder: Decoder) -> bool:
    """Whether they were taken as columns; if so, as one by one."""
    found = decoded_columns(RecordColumns.of(records), decoder, START)
    assert found is None or list(found) == [decoder.decode(record, START) for record in records]
    return found is not None


def body(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "text": "buy now", "label": "spam", **changes}


@pytest.mark.parametrize(
    "changes",
    [
        [{}, {"text": "naïve 🤖"}, {"text": " \x1f.", "label": "ham"}, {"text": 'said "no"\\\n'}, {"text": "\u2003x"}],
        [{"id": 7}, {"id": -12}],
        [{"occurred_at": 5}, {"occurred_at": 0}],
        [{"occurred_at": 1_767_225_600_000}, {"occurred_at": 1_767_225_600}, {"occurred_at": None}],
        [{"occurred_at": None}, {"occurred_at": 5}],
        [{"occurred_at": "2026-01-02T03:04:05+01:00"}, {"occurred_at": "2026-01-02"}],
        [{"occurred_at": 1.5}, {"occurred_at": 2}],
        [{"source": "a"}, {"source": None}, {}],
        [{"source": None}, {"source": "b"}],
        [{"split": None}],
        [{"lang": "en", "score": 1, "seen": True, "more": None}, {"lang": None, "score": 1.5}],
        [{"text": "{[" * 15}, {"text": "é" * 30}],
    ],
)
@pytest.mark.parametrize("key", ["id", "text"])
def test_plain_records_are_decoded_by_column(changes: list[dict[str, Any]], key: str) -> None:
    values = [json.dumps(body(**change), ensure_ascii=False).encode() for change in changes]
    assert agrees(given_records([*values]), decoder(splits=Splits(key=key)))


def named_only(*sources: str) -> Decoder:
    return decoder(records=RecordsPolicy(new_sources="dead_letter", trusted_sources=list(sources)))


@pytest.mark.parametrize(
    ("sources", "named", "by_column"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a"], False),
        ([None, None], ["mails"], True),
        ([None, None], ["mails~2"], False),
        (["a", None], ["a", "mails"], True),
        (["a", None], ["a"], False),
        ([None, "a"], ["mails"], False),
    ],
)
def test_one_source_that_nobody_named_puts_all_in_doubt(
    sources: list[str | None], named: list[str], by_column: bool
) -> None:
    records = given_records([json.dumps(body(source=source)).encode() for source in sources])
    assert agrees(records, named_only(*named)) is by_column
    batch = assemble(records, {}, named_only(*named), START).batch
    strangers = [place for place, source in enumerate(sources) if (source or "mails") not in named]
    assert [letter.position.offset for letter in batch.dead_letters] == strangers
    assert len(batch.examples) == len(sources) - len(strangers)


def test_an_empty_source_beside_one_that_is_missing_is_in_doubt() -> None:
    assert not agrees(given_records([json.dumps(body(source=source)).encode() for source in (None, "")]), decoder())


def test_a_topic_that_nobody_named_puts_records_without_a_source_in_doubt() -> None:
    assert agrees(given_records([GOOD, GOOD]), named_only("mails"))
    assert not agrees(given_records([GOOD, GOOD]), named_only("letters"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"[]",
        b'{"id":"1","text":"buy now"}',
        b'{"id":"1","text":"buy now","label":"spam","label":"spam"}',
        b'{"id":"1","text":"buy now","label":"spam","la\\u0062el":"spam"}',
        b'{"id":null,"id":"1","text":"buy now","label":"spam"}',
        b'{"id":"1","text":"buy now","label":"spam","occurred_at":NaN}',
        b'{"id":"1","text":"buy now","label":"eggs"}',
        b'{"id":"1","text":"buy now","label":null}',
        b'{"id":1,"text":"buy now","label":"spam"}',
        b'{"id":"1","text":"buy \xff","label":"spam"}',
        b'{"id":"1","text":"\\ud800","label":"spam"}',
        b'{"id":"1","text":"buy\nnow","label":"spam"}',
        b'{"id":"1","text":" \xc2\xa0\\u2003","label":"spam"}',
        b'{"id":"1","text":"","label":"spam"}',
        b'{"id":"1","text":"' + b"x" * 31 + b'","label":"spam"}',
        b'{"id":"' + b"x" * 513 + b'","text":"buy","label":"spam"}',
        b'{"id":"1","text":"buy now","label":"spam","more":{"a":1}}',
        b'{"id":"1","text":"buy now","label":"spam","split":"train"}',
        GOOD + GOOD,
        GOOD[:-1] + b",}",
        GOOD + b"}",
        b'{"text":"' + b"x" * 10_000 + b'"}',
        b'{"id":"1","text":' + b"[" * 9000 + b"}",
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_with_one_record_in_doubt_nothing_is_said(value: bytes | None, place: int) -> None:
    values: list[bytes | None] = [GOOD, GOOD]
    values[place] = value
    assert decoded_columns(RecordColumns.of(given_records(values)), decoder(), START) is None
    assembly = assemble(given_records(values), {}, decoder(), START)
    assert len(assembly.batch) == 2


@pytest.mark.parametrize("number", [b"NaN", b"Inf", b"Infinity", b"-Infinity", b"1e400", b"1" * 5000])
def test_a_number_that_is_none_is_in_doubt_in_a_field_that_nobody_wants_too(number: bytes) -> None:
    values = [GOOD[:-1] + b',"score":' + score + b"}" for score in (b"1", number)]
    assert not agrees(given_records([*values]), decoder())


@pytest.mark.parametrize("field", ["id", "text", "label", "occurred_at", "source", "split"])
def test_a_dotted_name_is_of_something_nested_and_of_no_key_with_a_dot(field: str) -> None:
    encoded = json.dumps(body(**{"meta.it": "train"})).encode()
    agrees(
        given_records([encoded, encoded]),
        decoder(fields=FieldNames.model_validate({field: "meta.it"}), labels=frozenset()),
    )


def test_two_halves_of_an_object_are_not_one() -> None:
    cut = [b'{"id":"1","text":"}', b'{","label":"spam"}']
    assert decoded_columns(RecordColumns.of(given_records([*cut, GOOD])), decoder(), START) is None


def test_a_record_without_any_time_is_in_doubt() -> None:
    assert decoded_columns(RecordColumns.of(given_records([GOOD], time=None)), decoder(), START) is None


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["spam", "ham", "a", "é", " ", "\x1c", "train", "2026-01-02", 5, 10**11, -1, [1], {"a": 1}]),
)
fields = st.sampled_from(["id", "text", "label", "occurred_at", "source", "split", "more"])
bodies = st.builds(lambda changes: body(**changes), st.dictionaries(fields, values, max_size=1))


@given(st.lists(bodies, min_size=1, max_size=3), st.booleans(), st.data())
def test_what_is_decoded_by_column_is_what_one_by_one_gives(
    bodies: list[dict[str, Any]], escaped: bool, data: st.DataObject
) -> None:
    encoded = [json.dumps(body, ensure_ascii=escaped).encode(errors="surrogatepass") for body in bodies]
    place = data.draw(st.integers(0, len(encoded) - 1))
    begin = data.draw(st.integers(0, len(encoded[place])))
    splice = data.draw(
        st.just(b"") | st.sampled_from([b"\n", b" ", b"}", b"{", b'"', b",", b"\\", b"\xff", b'"id":"2",', b"0"])
    )
    encoded[place] = encoded[place][:begin] + splice + encoded[place][begin:]
    agrees(given_records([*encoded]), decoder())


def test_parts_that_were_decoded_either_way_become_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ingest.assemble.IN_DOUBT", 2)
    records = given_records([GOOD, GOOD, b"bad", GOOD, GOOD])
    batch = assemble(records, {}, decoder(), START).batch
    assert batch.examples == [decoder().decode(record, START) for record in records if record.value != b"bad"]
    assert [letter.position.offset for letter in batch.dead_letters] == [2]


def test_what_several_threads_read_comes_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ingest.arrow_decode.BLOCK", 1)
    monkeypatch.setattr("daemon.ingest.arrow_decode.IN_DOUBT", 2)
    values = [json.dumps(body(id=f"id-{number}", text="x" * (number % 7 + 1))).encode() for number in range(300)]
    assert agrees(given_records(values), decoder())
