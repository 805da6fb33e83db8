"""Single records read once more by their position, on real brokers."""

import os
import socket
import uuid
from collections.abc import Sequence

import pytest
from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient

from daemon.config import KafkaConfig
from daemon.core.errors import SourceError
from daemon.core.stream import Position, Record
from daemon.demo.brokers import Broker
from daemon.ingest import kafka_batches, kafka_lookup, kafka_source
from daemon.ingest.kafka_lookup import look_up
from tests.conftest import APACHE_KAFKA

LARGE = os.urandom(300_000)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_lookup, "PROBE_LIMIT", 0.5)


def config(broker: Broker, topic: str) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=broker.bootstrap_servers, topics=[topic])


def found(broker: Broker, positions: Sequence[Position]) -> list[Record]:
    return list(look_up(config(broker, positions[0].topic), positions))


def fill(broker: Broker, topic: str, values: Sequence[bytes]) -> None:
    """Into the first partition, in batches of several."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=50, compression_type="gzip")
    for value in values:
        producer.send(topic, value, key=b"key", partition=0)
    producer.flush()
    producer.close()


@pytest.mark.parametrize("fast", [True, False])
def test_records_are_found_by_their_place_and_empty_places_give_nothing(
    broker: Broker, topic: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(kafka_batches, "version", lambda package: "3.99")
    values = [b"zero", LARGE, b"two", b"three"]
    fill(broker, topic, values)
    other = f"nobody-made-{uuid.uuid4().hex}"
    places = [
        Position(f"{topic}~2", 0, 1),
        Position(topic, 0, 3),
        Position(topic, 0, 4),
        Position(topic, 1, 0),
        Position(topic, 9, 0),
        Position(other, 0, 0),
        Position(topic, 0, 0),
    ]
    records = found(broker, places)
    assert [(record.position, record.key, record.value) for record in records] == [
        (places[0], b"key", LARGE),
        (places[1], b"key", b"three"),
        (places[6], b"key", b"zero"),
    ]


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_what_the_broker_deleted_is_not_found(broker: Broker, topic: str) -> None:
    fill(broker, topic, [b"zero", b"one", b"two"])
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({KafkaPartition(topic, 0): 2})
    admin.close()
    records = found(broker, [Position(topic, 0, 1), Position(topic, 0, 2)])
    assert [record.value for record in records] == [b"two"]


def test_brokers_that_are_not_there_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(SourceError, match=nowhere):
        list(look_up(KafkaConfig(bootstrap_servers=[nowhere], topics=["t"]), [Position("t", 0, 0)]))
