import json
from datetime import UTC, datetime
from typing import Any

import pytest

from daemon.config import FieldNames, KafkaConfig, LabelFields, Splits
from daemon.core.states import HalfKind, RejectReason
from daemon.core.stream import Example, Half, Position, Record, Reject
from daemon.ingest.decode import Decoder
from daemon.ingest.halves import half_readers
from daemon.policy.schema import RecordsPolicy
from daemon.testing.clock import START

BROKER_TIME = datetime(2020, 2, 3, tzinfo=UTC)
KAFKA = KafkaConfig(
    predictions_topic="answers",
    labels_topic="verdicts",
    label_fields=LabelFields(id="ticket", label="team.name", occurred_at="closed_at", source="agent"),
)


def decoded(topic: str, body: dict[str, Any], kafka: KafkaConfig = KAFKA, **policy: Any) -> Any:
    records = RecordsPolicy(max_text_chars=20, **policy)
    halves = half_readers(kafka, records, ("billing", "returns"), lambda person: f"hash of {person}")
    decoder = Decoder(FieldNames(), frozenset(), records, Splits(), max_record=10_000, halves=halves)
    return decoder.decode(Record(Position(topic, 0, 7), BROKER_TIME, None, json.dumps(body).encode()), START)


def test_a_servers_answer_is_a_prediction() -> None:
    body = {
        "id": "r-1/0",
        "model": "tickets",
        "version": 3,
        "text": "hello",
        "prediction": "billing",
        "confidence": 0.9,
        "occurred_at": "2026-01-05T09:00:00.000000Z",
    }
    assert decoded("answers", body) == Half(
        Position("answers", 0, 7),
        HalfKind.PREDICTION,
        "r-1/0",
        text="hello",
        label=None,
        prediction="billing",
        version=3,
        occurred_at=START,
        ingested_at=START,
        source="answers",
    )


def test_a_label_has_the_names_that_the_config_gives() -> None:
    body = {"ticket": 17, "team": {"name": "returns"}, "closed_at": START.timestamp(), "agent": "agent-7"}
    half = decoded("verdicts", body)
    assert (half.kind, half.id, half.label, half.source) == (HalfKind.LABEL, "17", "returns", "agent-7")
    assert (half.text, half.occurred_at) == (None, START)


def test_what_is_optional_falls_back_to_what_the_broker_knows() -> None:
    half = decoded("verdicts", {"ticket": "17", "team": {"name": "returns"}})
    assert (half.source, half.occurred_at) == ("verdicts", BROKER_TIME)
    bare = decoded("answers", {"id": "1", "text": "hello"})
    assert (bare.prediction, bare.version, bare.occurred_at) == (None, None, BROKER_TIME)


def test_a_prediction_may_say_whom_it_is_about() -> None:
    assert decoded("answers", {"id": "1", "text": "hello", "subject": "ann"}).subject == "hash of ann"


@pytest.mark.parametrize(
    ("topic", "body", "reason"),
    [
        ("answers", {"text": "hello"}, RejectReason.MISSING_FIELD),
        ("answers", {"id": "1"}, RejectReason.MISSING_FIELD),
        ("answers", {"id": "1", "text": " "}, RejectReason.EMPTY_TEXT),
        ("answers", {"id": "1", "text": "x" * 21}, RejectReason.TOO_BIG),
        ("answers", {"id": "1", "text": "hello", "version": "3"}, RejectReason.WRONG_TYPE),
        ("answers", {"id": "1", "text": "hello", "version": 2**31}, RejectReason.WRONG_TYPE),
        ("answers", {"id": "1", "text": "a\ud800"}, RejectReason.BAD_UNICODE),
        ("verdicts", {"ticket": "1", "team": "returns"}, RejectReason.MISSING_FIELD),
        ("verdicts", {"ticket": "1", "team": {"name": "x"}, "closed_at": "soon"}, RejectReason.BAD_TIME),
    ],
)
def test_a_bad_half_is_refused_with_its_reason(topic: str, body: dict[str, Any], reason: RejectReason) -> None:
    reject = decoded(topic, body)
    assert isinstance(reject, Reject), reject
    assert reject.reason == reason


@pytest.mark.parametrize(
    ("named", "agent", "refused"),
    [
        ("agent-7", "agent-7", False),
        ("verdicts", None, False),
        ("agent-7", "agent-8", True),
        ("agent-7", None, True),
        ("verdicts", "agent-7", True),
    ],
)
def test_where_only_named_sources_are_taken_it_is_the_labels_that_counts(
    named: str, agent: str | None, refused: bool
) -> None:
    policy = {"new_sources": "dead_letter", "trusted_sources": [named]}
    verdict = decoded("verdicts", {"ticket": "1", "team": {"name": "x"}, "agent": agent}, **policy)
    if refused:
        assert isinstance(verdict, Reject), verdict
        assert verdict.reason == RejectReason.UNKNOWN_SOURCE
        assert repr(agent or "verdicts") in verdict.detail
    else:
        assert verdict.source == named
    assert decoded("answers", {"id": "1", "text": "hello"}, **policy).source == "answers"


def test_a_topic_that_was_recreated_is_read_as_it_was() -> None:
    assert isinstance(decoded("answers~2", {"id": "1", "text": "hello"}), Half)


def test_other_topics_bring_examples() -> None:
    body = {"id": "1", "text": "hello", "label": "yes"}
    assert isinstance(decoded("examples", body), Example)
    assert half_readers(KafkaConfig(), RecordsPolicy(), ()) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"predictions_topic": "p"}, "belong together"),
        ({"predictions_topic": "p", "labels_topic": "p"}, "distinct"),
        ({"predictions_topic": "examples", "labels_topic": "l"}, "distinct"),
        ({"schema_registry": {"url": "http://far.example", "username": "u", "password_file": "f"}}, "https"),
        ({"schema_registry": {"username": "u"}}, "belong together"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KafkaConfig.model_validate(change)


def test_a_label_that_is_not_listed_is_refused_where_the_policy_says_so() -> None:
    body = {"ticket": "a", "team": {"name": "sales"}}
    refused = decoded("verdicts", body, unknown_label="dead_letter")
    assert isinstance(refused, Reject)
    assert refused.reason is RejectReason.UNKNOWN_LABEL
    assert "'sales' is a label that task.labels does not list" in refused.detail
    assert decoded("verdicts", body).label == "sales"
    assert decoded("verdicts", {**body, "team": {"name": "returns"}}, unknown_label="dead_letter").label == "returns"
