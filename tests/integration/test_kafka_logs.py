"""A log that is not what it was: recreated, cut by retention, damaged, or read by somebody else. On a real Apache Kafka."""

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata
from structlog.testing import capture_logs

from daemon.config import FieldNames, KafkaConfig, Splits
from daemon.core.errors import ConfigError, SourceError
from daemon.core.states import TroubleReason
from daemon.core.stream import TopicPartition
from daemon.demo.brokers import Broker, create_topic
from daemon.ingest import kafka_source
from daemon.ingest.acceptance import acceptance
from daemon.ingest.consume import Ingest
from daemon.ingest.decode import Decoder
from daemon.ingest.kafka_source import KafkaSource
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import ManualClock
from tests.conftest import APACHE_KAFKA
from tests.integration.test_kafka_to_store import example, produce, step_until

FETCH_LASTS = (
    0.6  # seconds after which no fetch is under way that would fail, and so tell the client of a deleted topic
)

pytestmark = pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)


class Reader:
    """A source, a store and the loop between them, as a learner opens them."""

    def __init__(self, broker: Broker, topic: str, path: Path, **settings: Any) -> None:
        config = KafkaConfig(
            bootstrap_servers=broker.bootstrap_servers, topics=[topic], group_id=f"group-of-{topic}", **settings
        )
        self.store = DuckdbStore.open(path, memory_limit=1 << 28, threads=1)
        self.source = KafkaSource(config, store_id=self.store.identity())
        self.metrics = LearnerMetrics()
        self.states: list[tuple[str, str]] = []
        self.ingest = Ingest(
            self.source,
            self.store,
            Decoder(FieldNames(), frozenset({"yes"}), RecordsPolicy(), Splits(), max_record=1 << 20),
            clock=ManualClock(),
            metrics=self.metrics,
            rng=random.Random(1),
            poll_timeout=0.2,
            tell=lambda state, detail: self.states.append((state, detail)),
        )

    def read(self, examples: int) -> None:
        step_until(self.ingest, lambda: self.store.counts().examples >= examples)
        self.ingest.step()
        assert self.store.counts().examples == examples
        assert (self.store.coverage().lost, self.store.coverage().twice) == (0, 0)

    def reasons(self) -> set[TroubleReason]:
        return {trouble.reason for trouble in self.source.troubles().values()}

    def accept(self, topic: str, partition: int | None = None, begin_at: int | None = None) -> None:
        troubles, next_offsets = self.source.troubles(), self.store.next_offsets()
        self.store.commit(acceptance(topic, partition, begin_at, troubles, next_offsets))
        self.ingest.restart()


@contextmanager
def reading(broker: Broker, topic: str, path: Path, **settings: Any) -> Iterator[Reader]:
    reader = Reader(broker, topic, path, **settings)
    try:
        yield reader
    finally:
        reader.source.close()
        reader.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb"


def examples(first: int, count: int) -> list[bytes | None]:
    return [example(number) for number in range(first, first + count)]


def recreate(broker: Broker, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_topics([topic], timeout_ms=10_000)
    admin.close()
    for attempt in range(50):
        try:
            create_topic(broker, topic, partitions=3)
            return
        except Exception:
            if attempt == 49:
                raise


@pytest.mark.parametrize(
    ("count", "reason"), [(6, TroubleReason.LOG_SHORT), (60, TroubleReason.LOG_REPLACED)], ids=["shorter", "longer"]
)
def test_a_recreated_topic_is_read_only_when_an_operator_says_so(
    broker: Broker, topic: str, path: Path, count: int, reason: TroubleReason
) -> None:
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
    recreate(broker, topic)
    produce(broker, topic, examples(100, count))
    with reading(broker, topic, path) as reader:
        for _ in range(3):
            reader.ingest.step()
        assert reader.store.counts().examples == 30
        assert (reader.reasons(), len(reader.source.troubles())) == ({reason}, 3)
        assert f"relearnd accept-log {topic}" in next(iter(reader.source.troubles().values())).detail
        reader.accept(topic)
        reader.read(30 + count)
        assert reader.source.troubles() == {}
    produce(broker, topic, examples(200, 6))
    with reading(broker, topic, path) as reader:  # the new log is recognised as the old one was
        reader.read(36 + count)
        assert set(reader.store.next_offsets()) == {
            TopicPartition(name, number) for name in (topic, f"{topic}~2") for number in range(3)
        }


def test_a_topic_recreated_while_it_is_read_is_noticed(broker: Broker, topic: str, path: Path) -> None:
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
        time.sleep(FETCH_LASTS)
        recreate(broker, topic)
        produce(broker, topic, examples(100, 60))
        for _ in range(60):
            try:
                reader.ingest.step()
            except SourceError:
                continue
            if reader.source.troubles():
                break
        assert reader.reasons() <= {TroubleReason.LOG_REPLACED, TroubleReason.LOG_SHORT} != set()
        assert reader.store.counts().examples == 30


def test_retention_that_passed_us_halts_the_partition_where_the_config_says_so(
    broker: Broker, topic: str, path: Path
) -> None:
    produce(broker, topic, examples(0, 9))
    with reading(broker, topic, path, on_gap="halt") as reader:
        reader.read(9)
    produce(broker, topic, examples(9, 9))
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({KafkaPartition(topic, 0): 5})
    admin.close()
    with reading(broker, topic, path, on_gap="halt") as reader:
        reader.read(15)
        assert (reader.reasons(), reader.store.counts().gap_offsets) == ({TroubleReason.RETENTION}, 0)
        reader.accept(topic)
        reader.read(16)
        assert reader.store.counts().gap_offsets == 2
        assert reader.source.troubles() == {}


def test_a_damaged_partition_rests_while_the_others_are_read(
    broker: Broker, topic: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "REFRESH_EVERY", 0.5)
    produce(broker, topic, examples(0, 9))
    unreadable(broker, topic, examples(9, 3))
    produce(broker, topic, examples(12, 9))
    with monkeypatch.context() as without_zstd, reading(broker, topic, path) as reader:
        without_zstd.setattr("kafka.codec.zstd", None)
        reader.read(15)
        assert {str(ours): trouble.reason for ours, trouble in reader.source.troubles().items()} == {
            f"{topic}[0]": TroubleReason.DAMAGED
        }
        produce(broker, topic, examples(21, 9))
        reader.read(15 + 6)
        without_zstd.undo()
        reader.read(30)
        assert reader.source.troubles() == {}


def test_a_damaged_batch_can_be_given_up(
    broker: Broker, topic: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(broker, topic, examples(0, 3))
    produce(broker, topic, examples(3, 9))
    unreadable(broker, topic, examples(12, 3))
    produce(broker, topic, examples(15, 9))
    monkeypatch.setattr("kafka.codec.zstd", None)
    with reading(broker, topic, path) as reader:
        reader.read(12)
        step_until(reader.ingest, lambda: reader.reasons() == {TroubleReason.DAMAGED})
        reader.accept(topic, 0, 3)
        reader.read(15)
        assert reader.store.counts().gap_offsets == 3
        step_until(reader.ingest, lambda: reader.reasons() == {TroubleReason.DAMAGED})
        reader.accept(topic, 0, 9)
        reader.read(18)
        assert reader.store.counts().gap_offsets == 6


def test_a_decompression_bomb_stops_its_partition_alone(broker: Broker, topic: str, path: Path) -> None:
    produce(broker, topic, examples(0, 9))
    bomb = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers,
        compression_type="zstd",
        max_request_size=1 << 27,
        batch_size=1 << 27,
    )
    bomb.send(topic, bytes(1 << 26), partition=0).get(30)
    bomb.close()
    produce(broker, topic, examples(9, 9))
    with reading(broker, topic, path) as reader:
        reader.read(15)
        (trouble,) = reader.source.troubles().values()
        assert (trouble.reason, trouble.next) == (TroubleReason.DAMAGED, 3)
        assert "more than 67,108,864 bytes, which is kafka.max_unpacked" in trouble.detail
        reader.accept(topic, 0, 4)
        reader.read(18)


def unreadable(broker: Broker, topic: str, values: list[bytes | None]) -> None:
    """One compressed batch in partition 0."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, compression_type="zstd", linger_ms=200)
    for value in values:
        producer.send(topic, value, partition=0)
    producer.flush()
    producer.close()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_compressed_topic_is_read(broker: Broker, topic: str, path: Path, codec: str) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, compression_type=codec, linger_ms=50)
    for number in range(50):
        producer.send(topic, example(number))
    producer.flush()
    producer.close()
    with reading(broker, topic, path) as reader:
        reader.read(50)


# --- who reads for the group --------------------------------------------------------------------------------------


def test_another_store_of_the_same_group_is_refused_unless_it_takes_over(
    broker: Broker, topic: str, path: Path, tmp_path: Path
) -> None:
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
        first = reader.store.identity()
        tool = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=f"group-of-{topic}")
        partition = KafkaPartition(topic, 0)
        step_until(reader.ingest, lambda: bool(tool.committed(partition, metadata=True)))
        tool.close(autocommit=False)
    with reading(broker, topic, tmp_path / "other.duckdb") as other:
        with pytest.raises(ConfigError, match=f"{first}.*take_over"):
            other.ingest.step()
        assert other.store.next_offsets() == {}
    with reading(broker, topic, tmp_path / "other.duckdb", take_over=True) as other:
        other.read(30)


def test_a_group_that_somebody_moved_is_logged_once_and_the_store_decides(
    broker: Broker, topic: str, path: Path
) -> None:
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
    produce(broker, topic, examples(30, 30))
    somebody = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=f"group-of-{topic}")
    partitions = [KafkaPartition(topic, number) for number in range(3)]
    somebody.assign(partitions)
    somebody.commit({partition: OffsetAndMetadata(20, "", -1) for partition in partitions}, timeout_ms=10_000)
    somebody.close(autocommit=False)
    with reading(broker, topic, path) as reader, capture_logs() as logs:
        reader.ingest.step()
        reader.ingest.restart()
        reader.read(60)
    assert [line["action"] for line in logs].count("group_ahead") == 1


def test_a_store_from_a_backup_goes_on_from_where_it_was(
    broker: Broker, topic: str, path: Path, tmp_path: Path
) -> None:
    produce(broker, topic, examples(0, 30))
    with reading(broker, topic, path) as reader:
        reader.read(30)
    backup = shutil.copy(path, tmp_path / "backup.duckdb")
    produce(broker, topic, examples(30, 30))
    with reading(broker, topic, path) as reader:
        reader.read(60)
    shutil.copy(backup, path)
    with reading(broker, topic, path) as reader:
        assert reader.store.counts().examples == 30
        reader.read(60)
