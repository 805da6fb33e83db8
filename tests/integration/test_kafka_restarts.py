"""What lasts: brokers that come back with another log, and ingest that reads nothing for long. On an Apache Kafka of its own."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from daemon.core.errors import UnavailableError
from daemon.core.states import TroubleReason
from daemon.demo.brokers import create_topic
from daemon.ingest import kafka_source
from daemon.ingest.kafka_source import KafkaSource
from tests.faults.broker import Kafka, free_ports
from tests.integration.test_kafka_logs import Reader, reading
from tests.integration.test_kafka_to_store import example, produce

pytestmark = pytest.mark.kafka

IDLE = 1.0  # seconds after which the broker hangs up on who says nothing


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    ports = free_ports(3)
    try:
        kafka = Kafka(tmp_path_factory.mktemp("kafka"), ports[0], ports, {"connections.max.idle.ms": int(IDLE * 1000)})
    except UnavailableError as error:
        pytest.skip(str(error))
    yield kafka
    kafka.kill()


def produce_each_alone(kafka: Kafka, topic: str, values: list[bytes | None], *, first: int) -> None:
    """Each record in a batch of its own, with a time that depends on its place alone."""
    producer = KafkaProducer(bootstrap_servers=kafka.direct.bootstrap_servers)
    for number, value in enumerate(values, first):
        producer.send(topic, value, partition=0, timestamp_ms=1_700_000_000_000 + number).get(10)
    producer.close()


def cut(log: Path, records: int) -> None:
    """As on a broker that never got the others."""
    content, end = log.read_bytes(), 0
    for _ in range(records):
        end += 12 + struct.unpack_from(">i", content, end + 8)[0]
    log.write_bytes(content[:end])


def test_a_log_that_was_cut_and_filled_again_is_noticed_although_its_last_record_is_the_same(
    kafka: Kafka, tmp_path: Path
) -> None:
    for topic in ("cut", "whole"):
        create_topic(kafka.direct, topic, partitions=1)
        produce_each_alone(kafka, topic, [example(number) for number in range(10)], first=0)
    for topic in ("cut", "whole"):
        with reading(kafka.direct, topic, tmp_path / topic) as reader:
            reader.read(10)
    kafka.kill()
    cut(kafka.data / "cut-0" / f"{0:020}.log", records=5)
    kafka.start()
    others = [*(example(number) for number in range(100, 104)), example(9), example(104)]
    produce_each_alone(kafka, "cut", others, first=5)
    produce_each_alone(kafka, "whole", [example(10)], first=10)
    with reading(kafka.direct, "whole", tmp_path / "whole") as reader:
        reader.read(11)
        assert reader.source.troubles() == {}
    with reading(kafka.direct, "cut", tmp_path / "cut") as reader:
        for _ in range(5):
            reader.ingest.step()
        assert (reader.reasons(), reader.store.counts().examples) == ({TroubleReason.LOG_REPLACED}, 10)
        (trouble,) = reader.source.troubles().values()
        assert "leader epochs" in trouble.detail
        assert "--from 5" in trouble.detail
        reader.accept("cut", 0, 5)
        reader.read(16)


# --- nothing is read for long: the disk is full, an operator is awaited, or the store is slow -----------------------


@pytest.mark.parametrize("refresh", [IDLE / 4, 30.0], ids=["metadata grow old", "brokers hang up"])
def test_after_a_long_rest_all_is_read_and_meanwhile_nothing_was_fetched(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh: float
) -> None:
    """A second here is ten minutes with the usual settings."""
    monkeypatch.setattr(kafka_source, "FETCH_MOST", 1 << 20)
    monkeypatch.setattr(kafka_source, "REFRESH_EVERY", refresh)
    topic = f"rest-{refresh}"
    create_topic(kafka.direct, topic, partitions=3)
    produce(kafka.direct, topic, [padded(number) for number in range(6000)])
    with resting(kafka, topic, tmp_path / "store") as reader:
        reader.ingest.step()
        stored = reader.store.counts().examples
        assert 0 < stored < 3000
        reader.held = True
        fetches = fetches_of(reader.source, monkeypatch)
        stop, ends = threading.Event(), time.monotonic() + 4 * IDLE
        reader.ingest.run(stop, lambda: stop.set() if time.monotonic() > ends else None)
        assert reader.store.counts().examples == stored
        assert fetches == [], "what the client holds is one answer of each broker, kafka_source.FETCH_MOST at most"
        produce(kafka.direct, topic, [padded(number) for number in range(6000, 6100)])
        reader.held = False
        reader.read(6100)
        assert fetches != []
        assert reader.metrics.source_errors._value.get() == 0


def test_a_partition_with_much_keeps_no_other_waiting(kafka: Kafka, tmp_path: Path) -> None:
    create_topic(kafka.direct, "loud", partitions=3)
    producer = KafkaProducer(bootstrap_servers=kafka.direct.bootstrap_servers, linger_ms=20)
    for number in range(20_000):
        producer.send("loud", padded(number), partition=0)
    for number in (1, 2):
        producer.send("loud", padded(20_000 + number), partition=number)
    producer.flush()
    producer.close()
    with resting(kafka, "loud", tmp_path / "store", batch_records=500) as reader:
        while not {1, 2} <= {partition.partition for partition in reader.store.next_offsets()}:
            reader.ingest.step()
            assert reader.store.counts().examples <= 10_000
        reader.read(20_002)


def padded(number: int) -> bytes:
    body: dict[str, str] = json.loads(example(number) or b"")
    return json.dumps(body | {"text": f"{body['text']} {'x' * 1000}"}).encode()


class RestingReader(Reader):
    held = False


@contextmanager
def resting(kafka: Kafka, topic: str, path: Path, **settings: Any) -> Iterator[RestingReader]:
    reader = RestingReader(kafka.direct, topic, path, **settings)
    reader.ingest._held = lambda: reader.held
    try:
        yield reader
    finally:
        reader.source.close()
        reader.store.close()


def fetches_of(source: KafkaSource, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked of brokers from now on."""
    assert source._consumer is not None
    fetcher, asked = source._consumer._fetcher, []
    create = fetcher._create_fetch_requests

    def noted() -> object:
        asked.append(requests := create())
        return requests

    monkeypatch.setattr(fetcher, "_create_fetch_requests", noted)
    return asked
