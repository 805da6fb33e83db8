"""What fetching by topic ids promises: records of the topic that was meant, and none of another that has its name."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition

from daemon.demo.brokers import Broker, create_topic
from daemon.ingest.kafka_ids import fetch_by, topic_ids
from tests.conftest import APACHE_KAFKA

pytestmark = pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)


@pytest.fixture
def topics(broker: Broker) -> list[str]:
    """Two, each with one record in its one partition."""
    names = [f"{each}-{uuid.uuid4().hex}" for each in ("first", "second")]
    for name in names:
        create_topic(broker, name, partitions=1)
        fill(broker, name)
    return names


def fill(broker: Broker, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    producer.send(topic, b"value").get(10)
    producer.close()


@contextmanager
def fetching(broker: Broker, topics: list[str], ids: Mapping[str, uuid.UUID]) -> Iterator[KafkaConsumer]:
    """From the beginning. `ids` are held against those that the topics have."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="none")
    try:
        assert all(consumer.partitions_for_topic(topic) for topic in topics)
        fetch_by(consumer, {**topic_ids(consumer, topics), **ids})
        partitions = [KafkaPartition(topic, 0) for topic in topics]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        yield consumer
    finally:
        consumer.close(autocommit=False)


def offsets(consumer: KafkaConsumer, seconds: float = 3.0) -> dict[str, list[int]]:
    """Of all records that come until none comes for as long."""
    found: dict[str, list[int]] = {}
    while polled := consumer.poll(timeout_ms=int(seconds * 1000)):
        for partition, records in polled.items():
            found.setdefault(partition.topic, []).extend(record.offset for record in records)
    return found


def test_a_topic_under_another_id_gives_nothing_and_the_others_are_read(broker: Broker, topics: list[str]) -> None:
    first, second = topics
    with fetching(broker, topics, {first: uuid.uuid4()}) as consumer:
        assert offsets(consumer) == {second: [0]}


def test_topics_come_and_go_within_a_session(broker: Broker, topics: list[str]) -> None:
    first, second = topics
    with fetching(broker, topics, {}) as consumer:
        assert offsets(consumer, 1.0) == {first: [0], second: [0]}
        consumer.assign([KafkaPartition(second, 0)])
        consumer.seek(KafkaPartition(second, 0), 1)
        for topic in topics:
            fill(broker, topic)
        assert offsets(consumer, 1.0) == {second: [1]}
        consumer.assign([KafkaPartition(topic, 0) for topic in topics])
        consumer.seek(KafkaPartition(first, 0), 1)
        consumer.seek(KafkaPartition(second, 0), 1)
        assert offsets(consumer, 1.0) == {first: [1], second: [1]}


def test_every_fetch_names_ids(broker: Broker, topics: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with fetching(broker, topics, {}) as consumer:
        answers: list[int] = []
        handle = consumer._fetcher._handle_fetch_response

        def noted(*given: Any) -> None:
            answers.append(given[-1].API_VERSION)
            handle(*given)

        monkeypatch.setattr(consumer._fetcher, "_handle_fetch_response", noted)
        offsets(consumer, 1.0)
        assert set(answers) == {13}
