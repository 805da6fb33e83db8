"""Records far above kafka.max_record: kept by their beginning, and nothing around them is lost. On a real Apache Kafka."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource, KafkaAdminClient

from daemon.core.states import RejectReason
from daemon.core.stream import Coverage, Position
from daemon.demo.brokers import Broker
from daemon.ingest.cut_letters import KEPT
from daemon.runtime.memory import resident
from tests.conftest import APACHE_KAFKA
from tests.integration.test_kafka_logs import reading
from tests.integration.test_kafka_to_store import example, step_until

pytestmark = pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)

BROKERS_MOST = 100 << 20  # bytes of a request that a broker takes, if nobody told it otherwise
LARGE = 20_000_000
LARGEST = BROKERS_MOST - (64 << 10)
SOME = 50  # small records in half a partition


@contextmanager
def producing(broker: Broker, topic: str, codec: str | None = None) -> Iterator[KafkaProducer]:
    """Records of one partition that are sent together share a batch, however large."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.alter_configs([ConfigResource("TOPIC", topic, {"max.message.bytes": str(BROKERS_MOST)})])
    admin.close()
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers,
        max_request_size=BROKERS_MOST,
        batch_size=BROKERS_MOST // 2,
        linger_ms=200,
        compression_type=codec,
        request_timeout_ms=60_000,
    )
    yield producer
    producer.flush()
    producer.close()


def large(number: int, size: int, codec: str | None) -> bytes:
    text = "x" * size if codec else os.urandom(size // 2).hex()
    return json.dumps({"id": f"large-{number}", "text": text, "label": "yes"}).encode()[:size]


@pytest.mark.parametrize(("size", "codec"), [(LARGE, None), (LARGE, "gzip"), (LARGEST, None)])
def test_a_large_record_is_a_dead_letter_and_what_is_around_it_is_stored(
    broker: Broker, topic: str, tmp_path: Path, size: int, codec: str | None
) -> None:
    value = large(0, size, codec)
    with producing(broker, topic, codec) as producer:
        for number in range(6 * SOME):
            producer.send(topic, example(number), partition=number % 3)
        producer.send(topic, value, partition=0)
        for number in range(6 * SOME, 12 * SOME):
            producer.send(topic, example(number), partition=number % 3)
    with reading(broker, topic, tmp_path / "store.duckdb") as reader:
        total = 12 * SOME
        step_until(reader.ingest, lambda: sum(reader.store.next_offsets().values()) == total + 1)
        assert reader.store.coverage() == Coverage(total + 1, total, 1, gap_offsets=0, lost=0, twice=0, repeated_ids=0)
        (letter,) = reader.store.dead_letters(9)
        assert (letter.position, letter.reason) == (Position(topic, 0, 2 * SOME), RejectReason.TOO_BIG)
        assert letter.value == value[:KEPT]
        assert f"{len(value)} bytes; kafka.max_record is 1048576" in letter.detail
        assert letter.detail.endswith(sha256(value).hexdigest())
        assert reader.metrics.source_errors._value.get() == 0
        assert reader.source.troubles() == {}


def test_memory_does_not_grow_with_the_large_records_that_were_read(broker: Broker, topic: str, tmp_path: Path) -> None:
    few, many = 2, 6
    with producing(broker, topic) as producer:
        for number in range(many):
            producer.send(topic, large(number, LARGE, None), partition=0).get(60)
            producer.send(topic, example(number), partition=0)
    with reading(broker, topic, tmp_path / "store.duckdb", batch_records=1) as reader:
        step_until(reader.ingest, lambda: reader.store.counts().examples == few)
        before = resident()
        step_until(reader.ingest, lambda: reader.store.counts().examples == many)
        assert resident() - before < (many - few) * LARGE / 2
