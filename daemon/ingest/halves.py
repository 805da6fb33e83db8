"""Records of the predictions and the labels topic, each half of an example whose label comes later."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from daemon.config import KafkaConfig
from daemon.core.states import HalfKind, RejectReason
from daemon.core.stream import Half, Record, kafka_topic
from daemon.ingest.decode import (
    Body,
    DecodeHalf,
    broker_time,
    finder,
    id_of,
    listed,
    name,
    optional_name,
    string,
    time,
    trusted,
)
from daemon.ingest.strict_json import Refused, short
from daemon.policy.schema import RecordsPolicy


def half_readers(
    kafka: KafkaConfig,
    records: RecordsPolicy,
    labels: Collection[str],
    hash_of: Callable[[str], str] | None = None,
) -> Mapping[str, DecodeHalf]:
    """How each of the two topics is read, by its name; nothing where the config names none.

    A prediction's fields have the names under which a server writes them. `labels` and `hash_of` as the Decoder's: a prediction
    may name its person in `subject`. Only a label's source must be trusted: it becomes the example's.
    """

    def prediction(body: Body, record: Record, now: datetime) -> Half:
        person = optional_name("subject", body) if hash_of else None
        return Half(
            position=record.position,
            kind=HalfKind.PREDICTION,
            id=id_of("id", body),
            text=_text(body, records.max_text_chars),
            label=None,
            prediction=optional_name("prediction", body),
            version=_version(body),
            occurred_at=time("occurred_at", body) or broker_time(record),
            ingested_at=now,
            source=optional_name("source", body) or kafka_topic(record.position.topic),
            subject=hash_of(person) if hash_of and person else None,
        )

    def label(body: Body, record: Record, now: datetime) -> Half:
        fields = kafka.label_fields
        return Half(
            position=record.position,
            kind=HalfKind.LABEL,
            id=id_of(fields.id, body),
            text=None,
            label=listed(name(fields.label, finder(fields.label)(body)), labels, records),
            prediction=None,
            version=None,
            occurred_at=time(fields.occurred_at, body) or broker_time(record),
            ingested_at=now,
            source=trusted(optional_name(fields.source, body) or kafka_topic(record.position.topic), records),
        )

    topics = {kafka.predictions_topic: prediction, kafka.labels_topic: label}
    return {topic: read for topic, read in topics.items() if topic}


def _text(body: Body, longest: int) -> str:
    text = string("text", body.get("text"))
    if len(text) > longest:
        raise Refused(
            RejectReason.TOO_BIG, f"field 'text' has {len(text)} characters; records.max_text_chars is {longest}"
        )
    if not text.strip():
        raise Refused(RejectReason.EMPTY_TEXT, "field 'text' is empty or only white space")
    return text


def _version(body: Body) -> int | None:
    version = body.get("version")
    if version is None:
        return None
    if type(version) is not int or not 0 <= version < 2**31:
        raise Refused(RejectReason.WRONG_TYPE, f"field 'version' is {short(version)}, not the number of a version")
    return version
