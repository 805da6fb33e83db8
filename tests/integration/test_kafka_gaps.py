"""Offsets that hold nothing for us, where no record comes behind them to show it. On a real Apache Kafka."""

import uuid
from pathlib import Path

import pytest
from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient
from structlog.testing import capture_logs

from daemon.core.errors import SourceError
from daemon.core.stream import TopicPartition
from daemon.demo.brokers import Broker
from daemon.ingest import kafka_logs
from tests.conftest import APACHE_KAFKA
from tests.integration.test_kafka_logs import examples, reading
from tests.integration.test_kafka_to_store import produce, step_until

pytestmark = pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb"


def test_aborted_records_and_markers_at_the_end_are_gaps_and_no_lag(broker: Broker, topic: str, path: Path) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=topic)
    producer.init_transactions()
    for values, keep, partition in ((examples(0, 5), True, 0), (examples(5, 3), False, 0), (examples(8, 2), False, 1)):
        producer.begin_transaction()
        for value in values:
            producer.send(topic, value, partition=partition)
        producer.flush()
        producer.commit_transaction() if keep else producer.abort_transaction()
    producer.close()
    ends = {TopicPartition(topic, 0): 10, TopicPartition(topic, 1): 3}
    with reading(broker, topic, path, on_gap="halt") as reader:
        step_until(reader.ingest, lambda: reader.store.next_offsets() == ends)
        assert sum(reader.ingest.lag().values()) == 0
        assert (reader.store.counts().examples, reader.store.counts().gap_offsets) == (5, 8)
        assert (reader.store.coverage().lost, reader.store.coverage().twice) == (0, 0)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({KafkaPartition(topic, 0): 10})
    admin.close()
    with reading(broker, topic, path, on_gap="halt") as reader:
        reader.ingest.step()
        assert reader.source.troubles() == {}


def test_what_brokers_do_not_compare_in_time_is_not_read(
    broker: Broker, topic: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
    produce(broker, topic, examples(30, 30))
    monkeypatch.setattr(kafka_logs, "COMPARE_LIMIT", 0.0)
    with reading(broker, topic, path) as reader:
        monkeypatch.setattr(reader.source, "_poll", lambda *_, **__: {})
        with pytest.raises(SourceError, match="nothing is read"):
            reader.ingest.step()
        assert reader.store.counts().examples == 30
        monkeypatch.undo()
        reader.read(60)


def test_the_lag_grows_while_ingest_is_held(
    broker: Broker, topic: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.ingest.kafka_source.LOOK_EVERY", 0.0)
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
        monkeypatch.setattr(reader.ingest, "_held", lambda: True)
        produce(broker, topic, examples(30, 6))
        step_until(reader.ingest, lambda: sum(reader.ingest.lag().values()) == 6)
        monkeypatch.undo()
        reader.read(36)
        assert sum(reader.ingest.lag().values()) == 0


def test_a_topic_that_is_missing_is_told_once_a_minute(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    with reading(broker, f"missing-{uuid.uuid4().hex}", path) as reader, capture_logs() as logs:
        monkeypatch.setattr(reader.source, "_monotonic", lambda: now[0])
        for _ in range(22):
            reader.ingest.step()
            now[0] += 3.0
    assert [line["action"] for line in logs].count("topics_missing") == 2
