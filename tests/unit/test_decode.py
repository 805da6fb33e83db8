import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import FieldNames, Splits
from daemon.core.states import RejectReason, SkipReason, Split
from daemon.core.stream import Example, Half, Position, Record, Reject
from daemon.ingest.decode import Decoder
from daemon.ingest.strict_json import MAX_DEPTH, Refused
from daemon.policy.schema import RecordsPolicy
from daemon.testing.clock import START

BROKER_TIME = datetime(2020, 2, 3, 4, 5, tzinfo=UTC)


def decoder(**changes: Any) -> Decoder:
    fields: dict[str, Any] = {
        "fields": FieldNames(),
        "labels": frozenset({"spam", "ham"}),
        "records": RecordsPolicy(unknown_label="dead_letter", tombstone="dead_letter"),
        "splits": Splits(),
        "max_record": 10_000,
    }
    return Decoder(**{**fields, **changes})


def record(value: bytes | None) -> Record:
    return Record(Position("mails", 2, 7), BROKER_TIME, key=b"k", value=value)


def decode(body: dict[str, Any] | bytes | None, **changes: Any) -> Example | Reject:
    value = json.dumps(body).encode() if isinstance(body, dict) else body
    return decoder(**changes).decode(record(value), START)


any_id = st.sampled_from(["1", "a-2", 3, "", None, True, "ü", "x" * 600, "\ud800"])
RULES = RecordsPolicy(unknown_label="dead_letter", max_text_chars=30)


def good(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "text": "buy now", "label": "spam", **changes}


def decoded(body: dict[str, Any] | bytes, **changes: Any) -> Example:
    example = decode(body, **changes)
    assert isinstance(example, Example), example
    return example


def refused(body: dict[str, Any] | bytes | None, **changes: Any) -> RejectReason:
    reject = decode(body, **changes)
    assert isinstance(reject, Reject), reject
    return reject.reason


def test_a_full_record_becomes_an_example() -> None:
    body = good(occurred_at="2026-01-02T03:04:05+01:00", source="inbox", split="holdout", extra=[1, {"a": 2}])
    assert decode(body) == Example(
        position=Position("mails", 2, 7),
        id="1",
        text="buy now",
        label="spam",
        occurred_at=datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC),
        ingested_at=START,
        source="inbox",
        split=Split.HOLDOUT,
    )


def test_what_is_optional_falls_back_to_what_the_broker_knows() -> None:
    example = decoded(good(occurred_at=None))
    assert (example.occurred_at, example.source) == (BROKER_TIME, "mails")


def test_fields_may_have_other_names_and_lie_deeper() -> None:
    fields = FieldNames(id="meta.key", text="body", label="answer.class", occurred_at=None, source=None, split=None)
    body = {"meta": {"key": 17}, "body": "hello", "answer": {"class": "ham"}, "occurred_at": "nonsense", "split": "x"}
    example = decoded(body, fields=fields)
    assert (example.id, example.text, example.label, example.occurred_at) == ("17", "hello", "ham", BROKER_TIME)


def test_a_nested_name_behind_something_else_is_missing() -> None:
    assert refused(good(), fields=FieldNames(text="text.body")) == RejectReason.MISSING_FIELD


def test_integer_and_string_ids_are_the_same_id() -> None:
    assert decoded(good(id=42)).id == decoded(good(id="42")).id == "42"


@pytest.mark.parametrize(
    "time",
    ["2026-01-02T03:04:05Z", "2026-01-02 03:04:05", "20260102T030405Z", 1767323045, 1767323045.0, 1767323045000],
)
def test_times_are_read_as_iso_8601_or_unix_seconds_or_milliseconds(time: object) -> None:
    assert decoded(good(occurred_at=time)).occurred_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, RejectReason.NO_VALUE),
        (b"", RejectReason.NOT_JSON),
        (b"not json", RejectReason.NOT_JSON),
        (b'{"id": "1", "text"', RejectReason.NOT_JSON),
        (b'{"id": "1"} {"id": "2"}', RejectReason.NOT_JSON),
        (b'{"id": "1", "text": "a\x01b"}', RejectReason.NOT_JSON),
        (b"[1, 2]", RejectReason.NOT_AN_OBJECT),
        (b"null", RejectReason.NOT_AN_OBJECT),
        (b'{"text": "\xff\xfe"}', RejectReason.NOT_UTF8),
        (b'{"text": "\xed\xa0\x80"}', RejectReason.NOT_UTF8),
        ('{"text": "hi"}'.encode("utf-16"), RejectReason.NOT_UTF8),
        (b'{"id": "1", "label": "ham", "label": "spam"}', RejectReason.DUPLICATE_KEY),
        (b'{"id": "1", "lab\\u0065l": "ham", "label": "spam"}', RejectReason.DUPLICATE_KEY),
        (b'{"id": "1", "more": {"a": 1, "a": 1}}', RejectReason.DUPLICATE_KEY),
        (b'{"score": NaN}', RejectReason.NON_FINITE),
        (b'{"score": -Infinity}', RejectReason.NON_FINITE),
        (b'{"score": 1e400}', RejectReason.NON_FINITE),
        (b'{"score": ' + b"9" * 5000 + b"}", RejectReason.TOO_BIG),
        (b'{"a": ' + b"[" * 4000 + b"]" * 4000 + b"}", RejectReason.TOO_DEEP),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", RejectReason.TOO_DEEP),
        (b" " * 10_001, RejectReason.TOO_BIG),
        (good(text="a\ud800b"), RejectReason.BAD_UNICODE),
        (good(id="\udc00"), RejectReason.BAD_UNICODE),
        ({"id": "1", "text": "hi"}, RejectReason.MISSING_FIELD),
        (good(label=None), RejectReason.MISSING_FIELD),
        (good(label="  "), RejectReason.MISSING_FIELD),
        (good(id=""), RejectReason.MISSING_FIELD),
        (good(id=1.5), RejectReason.WRONG_TYPE),
        (good(id=True), RejectReason.WRONG_TYPE),
        (good(text=["buy"]), RejectReason.WRONG_TYPE),
        (good(label=1), RejectReason.WRONG_TYPE),
        (good(source=7), RejectReason.WRONG_TYPE),
        (good(occurred_at=True), RejectReason.WRONG_TYPE),
        (good(text=" \t\n　"), RejectReason.EMPTY_TEXT),
        (good(id="x" * 513), RejectReason.TOO_BIG),
        (good(label="eggs"), RejectReason.UNKNOWN_LABEL),
        (good(label="Spam "), RejectReason.UNKNOWN_LABEL),
        (good(split="test"), RejectReason.BAD_SPLIT),
        (good(occurred_at="yesterday"), RejectReason.BAD_TIME),
        (good(occurred_at="9999-12-31T23:59:59-05:00"), RejectReason.BAD_TIME),
        (good(occurred_at=1767323045000000000), RejectReason.BAD_TIME),
        (good(occurred_at=1e300), RejectReason.BAD_TIME),
        (good(occurred_at=10**400), RejectReason.BAD_TIME),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(body: dict[str, Any] | bytes | None, reason: RejectReason) -> None:
    assert refused(body) == reason


def test_brackets_inside_a_text_are_no_nesting() -> None:
    text = '[{"' * 200 + "\\"
    assert decoded(good(text=text)).text == text


def test_a_text_that_is_too_long_is_refused_without_being_repeated() -> None:
    reject = decode(good(text="secret " * 20), records=RecordsPolicy(max_text_chars=100))
    assert isinstance(reject, Reject)
    assert reject.reason == RejectReason.TOO_BIG
    assert "140" in reject.detail
    assert "100" in reject.detail
    assert "secret" not in reject.detail


def test_where_no_label_is_listed_any_is_taken() -> None:
    assert decoded(good(label="eggs"), labels=frozenset()).label == "eggs"


def test_an_unknown_label_is_taken_where_the_policy_says_so() -> None:
    assert decoded(good(label="eggs"), records=RecordsPolicy(unknown_label="accept")).label == "eggs"


NAMED_ONLY = RecordsPolicy(new_sources="dead_letter", trusted_sources=["shop", "mails"], max_text_chars=30)


@pytest.mark.parametrize("source", ["shop", "mails", None])
def test_a_source_that_is_named_is_taken_and_that_of_a_record_that_says_none_is_its_topic(source: str | None) -> None:
    assert decoded(good(source=source), records=NAMED_ONLY).source == (source or "mails")


@pytest.mark.parametrize(
    ("named", "source", "stranger"),
    [(["shop"], "shöp", "shöp"), (["shop"], None, "mails"), (["mails"], "MAILS", "MAILS")],
)
def test_a_source_that_nobody_named_is_refused_with_what_to_do(
    named: list[str], source: str | None, stranger: str
) -> None:
    policy = NAMED_ONLY.model_copy(update={"trusted_sources": named})
    reject = decode(good(source=source), records=policy)
    assert isinstance(reject, Reject), reject
    assert (reject.reason, reject.detail) == (
        RejectReason.UNKNOWN_SOURCE,
        f"'{stranger}' is a source that records.trusted_sources does not name; "
        "name it, or set records.new_sources to quarantine or accept",
    )
    for other in ("accept", "quarantine"):
        assert decoded(good(source=source), records=policy.model_copy(update={"new_sources": other})).source == stranger


def test_a_tombstone_is_left_out_where_the_policy_says_so() -> None:
    assert decode(None, records=RecordsPolicy(tombstone="skip")) is SkipReason.TOMBSTONE


def test_an_unknown_label_that_may_be_quarantined_is_decoded() -> None:
    assert decoded(good(label="eggs"), records=RecordsPolicy(unknown_label="quarantine")).label == "eggs"


def test_records_of_a_topic_of_halves_are_read_by_its_own_rule() -> None:
    seen: list[tuple[dict[str, Any], Record]] = []

    def half(body: dict[str, Any], record: Record, now: datetime) -> Half:
        seen.append((body, record))
        raise Refused(RejectReason.MISSING_FIELD, f"read at {now}")

    reject = decode({"id": "1"}, halves={"mails": half})
    assert reject == Reject(RejectReason.MISSING_FIELD, f"read at {START}")
    assert [body for body, _ in seen] == [{"id": "1"}]
    assert refused({"id": "1"}, halves={"other": half}) == RejectReason.MISSING_FIELD
    assert len(seen) == 1


def test_another_parser_may_read_the_bytes() -> None:
    assert decoded(b"\x00anything", parse=lambda value, most: good(text=f"{value!r} {most}")).text == (
        "b'\\x00anything' 10000"
    )


bodies = st.one_of(
    st.builds(good, id=any_id, label=st.sampled_from(["spam", "ham"]), occurred_at=st.integers(0, 10**9)),
    st.builds(
        good,
        id=any_id,
        text=st.sampled_from(["buy", "", " ", "é", "x" * 40]),
        label=st.sampled_from(["spam", "ham", "eggs", "", None, 1, ["spam"]]),
        occurred_at=st.sampled_from(
            [None, 1, 1.5, -1, 10**11, 10**18, True, "2026-01-02T03:04:05+01:00", "never", [1]]
        ),
        source=st.sampled_from([None, "a", "", 7, "b" * 513]),
        split=st.sampled_from([None, "train", "test"]),
    ),
)


@given(st.lists(bodies, max_size=8), st.booleans())
def test_many_at_once_are_decoded_as_one_by_one(bodies: list[dict[str, Any]], timeless: bool) -> None:
    time = None if timeless else BROKER_TIME
    given_records = [
        Record(Position("mails~2", 0, offset), time, None, json.dumps(body).encode())
        for offset, body in enumerate(bodies)
    ]
    for rules in (RULES, NAMED_ONLY, NAMED_ONLY.model_copy(update={"trusted_sources": ["a"]})):
        one_by_one = [decoder(records=rules).decode(record, START) for record in given_records]
        assert decoder(records=rules).decode_all(given_records, START) == one_by_one


def test_an_empty_source_beside_one_that_is_missing_is_not_the_topic() -> None:
    bodies = [good(source=None), good(source="")]
    first, second = decoder().decode_all([record(json.dumps(body).encode()) for body in bodies], START)
    assert isinstance(first, Example)
    assert isinstance(second, Reject)


def test_plain_records_are_not_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(*_: Any) -> None:
        pytest.fail("the fast way was not taken")

    monkeypatch.setattr(Decoder, "reader", one_by_one)
    texts = ["hi", 'said "no"', "naïve 🤖", "a\\b\nc", "[{("]
    plain = [
        record(json.dumps(good(text=text, source="a", occurred_at=at)).encode()) for text in texts for at in (None, 5)
    ]
    assert len(decoder().decode_all(plain * 100, START)) == 1000
    named = RecordsPolicy(new_sources="dead_letter", trusted_sources=["a"])
    assert len(decoder(records=named).decode_all(plain * 100, START)) == 1000


def test_one_reader_keeps_its_records_apart() -> None:
    """Labels and sources that were good once are remembered for a batch: also next to bad ones."""
    read = decoder().reader(START)
    bodies = [good(source="a"), good(label="eggs", source="a"), good(label=["spam"]), good(source="b" * 513), good()]
    outcomes = [read(record(json.dumps(body).encode())) for body in bodies]
    assert [type(outcome) for outcome in outcomes] == [Example, Reject, Reject, Reject, Example]
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Reject)] == [
        RejectReason.UNKNOWN_LABEL,
        RejectReason.WRONG_TYPE,
        RejectReason.TOO_BIG,
    ]


def test_a_record_without_any_time_is_refused() -> None:
    timeless = Record(Position("mails", 0, 0), None, None, json.dumps(good()).encode())
    reject = decoder().decode(timeless, START)
    assert isinstance(reject, Reject)
    assert reject.reason == RejectReason.BAD_TIME


@given(st.binary(max_size=200))
def test_no_bytes_raise(value: bytes) -> None:
    assert isinstance(decode(value), Example | Reject)


any_text = st.text(st.characters(exclude_categories=()), max_size=20)  # half surrogate pairs too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
records = st.fixed_dictionaries(
    dict.fromkeys(("id", "text", "label"), any_text),
    optional=dict.fromkeys(("occurred_at", "source", "split", "more"), json_values),
)


@given(records | st.dictionaries(st.sampled_from(list(FieldNames.model_fields)), json_values))
def test_no_json_raises_and_every_example_can_be_stored(body: dict[str, Any]) -> None:
    outcome = decode(json.dumps(body).encode(), records=RecordsPolicy(unknown_label="accept"))
    if isinstance(outcome, Example):
        for text in (outcome.id, outcome.text, outcome.label, outcome.source):
            assert text.encode().decode() == text
            assert text.strip()
        assert outcome.occurred_at.utcoffset() is not None
