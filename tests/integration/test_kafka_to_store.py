"""A real broker at one end, a real DuckDB file at the other, and everything that happens in between."""

import json
import logging
import random
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata

from daemon.config import FieldNames, KafkaConfig, Splits
from daemon.core.errors import SourceError
from daemon.core.stream import Coverage
from daemon.demo.brokers import Broker, create_topic
from daemon.ingest import consume, kafka_source
from daemon.ingest.consume import Ingest
from daemon.ingest.decode import Decoder
from daemon.ingest.kafka_source import KafkaSource
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import ManualClock
from tests.conftest import APACHE_KAFKA

MALFORMED = [b"\xff\xfe", b"not json", b'{"id": "x", "text": "no label"}', b'{"score": NaN}', None]


class Crash(Exception):
    """Stands for the process dying at a failpoint."""


def config(broker: Broker, topic: str) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers=broker.bootstrap_servers, topics=[topic], batch_records=50, group_id=f"group-of-{topic}"
    )


@contextmanager
def learning(broker: Broker, topic: str, folder: Path) -> Iterator[tuple[Ingest, DuckdbStore]]:
    """A source, a store and the loop between them, as the learner opens them."""
    store = DuckdbStore.open(folder / "store.duckdb", memory_limit=1 << 28, threads=1)
    source = KafkaSource(config(broker, topic))
    records = RecordsPolicy(tombstone="dead_letter")
    decoder = Decoder(FieldNames(), frozenset({"yes"}), records, Splits(), max_record=1 << 20)
    try:
        yield (
            Ingest(
                source,
                store,
                decoder,
                clock=ManualClock(),
                metrics=LearnerMetrics(),
                rng=random.Random(1),
                poll_timeout=0.2,
            ),
            store,
        )
    finally:
        source.close()
        store.close()


def example(number: int) -> bytes:
    return json.dumps({"id": f"id-{number}", "text": f"text {number}", "label": "yes"}).encode()


def produce(broker: Broker, topic: str, values: list[bytes | None]) -> None:
    """Over the topic's three partitions in turn."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=5)
    sent = [producer.send(topic, value, key=b"k", partition=place % 3) for place, value in enumerate(values)]
    producer.flush()
    for future in sent:
        future.get(10)
    producer.close()


def a_round(first: int, count: int) -> list[bytes | None]:
    """Examples with every kind of malformed record strewn in."""
    values: list[bytes | None] = [example(number) for number in range(first, first + count)]
    for place, bad in enumerate(MALFORMED):
        values.insert(place * count // len(MALFORMED), bad)
    return values


def step_until(ingest: Ingest, done: Callable[[], bool]) -> None:
    for _ in range(100):
        if done():
            return
        ingest.step()
    raise AssertionError("it did not come to that in a hundred rounds")


def stores(store: DuckdbStore, *, examples: int, dead_letters: int) -> Callable[[], bool]:
    return lambda: (store.counts().examples, store.counts().dead_letters) == (examples, dead_letters)


@pytest.mark.parametrize("place", ["before_commit", "after_commit"])
def test_two_rounds_with_a_crash_in_each_lose_and_repeat_nothing(
    broker: Broker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    passes = 0

    def crash_at_the_second_pass(name: str) -> None:
        nonlocal passes
        passes += name == place
        if name == place and passes == 2:
            raise Crash

    monkeypatch.setattr(consume, "failpoint", crash_at_the_second_pass)
    for number in (1, 2):
        produce(broker, topic, a_round(number * 1000, 200))
        passes = 0
        with learning(broker, topic, tmp_path) as (ingest, _), pytest.raises(Crash):
            step_until(ingest, lambda: False)
        with learning(broker, topic, tmp_path) as (ingest, store):
            step_until(ingest, stores(store, examples=number * 200, dead_letters=number * len(MALFORMED)))
            total = number * (200 + len(MALFORMED))
            assert store.coverage() == Coverage(
                total, number * 200, number * len(MALFORMED), gap_offsets=0, lost=0, twice=0, repeated_ids=0
            )
            reasons = {letter.reason.value for letter in store.dead_letters(100)}
            assert reasons == {"not_utf8", "not_json", "missing_field", "non_finite", "no_value"}


def test_the_store_decides_and_not_the_group(broker: Broker, topic: str, tmp_path: Path) -> None:
    produce(broker, topic, [example(number) for number in range(30)])
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().examples == 30)
    somebody = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, group_id=config(broker, topic).group_id, enable_auto_commit=False
    )
    partitions = [KafkaPartition(topic, number) for number in range(3)]
    somebody.assign(partitions)
    somebody.commit({partition: OffsetAndMetadata(2, "", -1) for partition in partitions}, timeout_ms=10_000)
    somebody.close(autocommit=False)
    produce(broker, topic, [example(number) for number in range(30, 36)])
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().examples == 36)
        ingest.step()
        assert store.coverage() == Coverage(36, 36, 0, 0, lost=0, twice=0, repeated_ids=0)


def test_lag_tools_see_how_far_the_store_is(broker: Broker, topic: str, tmp_path: Path) -> None:
    produce(broker, topic, [example(number) for number in range(30)])
    tool = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=config(broker, topic).group_id)
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().examples == 30)
        step_until(ingest, lambda: tool.committed(KafkaPartition(topic, 2)) == 10)
    tool.close(autocommit=False)


def test_a_topic_that_comes_later_is_read(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_source, "REFRESH_EVERY_WHILE_MISSING", 0.1)
    topic = f"later-{uuid.uuid4().hex}"
    with learning(broker, topic, tmp_path) as (ingest, store):
        assert ingest.step() == 0
        create_topic(broker, topic, partitions=3)
        produce(broker, topic, [example(number) for number in range(6)])
        step_until(ingest, lambda: store.counts().examples == 6)


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_a_partition_that_comes_later_is_read(
    broker: Broker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "REFRESH_EVERY", 0.5)
    produce(broker, topic, [example(number) for number in range(6)])
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().examples == 6)
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.create_partitions({topic: 4})
        admin.close()
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        producer.send(topic, example(6), partition=3).get(10)
        producer.close()
        step_until(ingest, lambda: store.counts().examples == 7)
        assert (store.coverage().lost, store.coverage().twice) == (0, 0)


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_aborted_transactions_and_markers_are_gaps(broker: Broker, topic: str, tmp_path: Path) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=topic)
    producer.init_transactions()
    for first, keep in ((0, True), (10, False), (20, True)):
        producer.begin_transaction()
        for number in range(first, first + 3):
            producer.send(topic, example(number), partition=0)
        producer.flush()
        producer.commit_transaction() if keep else producer.abort_transaction()
    producer.close()
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().gap_offsets == 6)
        # 3 examples, marker, 3 aborted, marker, 3 examples, marker
        assert store.coverage() == Coverage(12, 6, 0, gap_offsets=6, lost=0, twice=0, repeated_ids=0)


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_records_deleted_while_ingest_was_away_are_a_gap(broker: Broker, topic: str, tmp_path: Path) -> None:
    produce(broker, topic, [example(number) for number in range(9)])
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().examples == 9)
    produce(broker, topic, [example(number) for number in range(9, 18)])
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({KafkaPartition(topic, 0): 5})
    admin.close()
    with learning(broker, topic, tmp_path) as (ingest, store):
        step_until(ingest, lambda: store.counts().examples == 16)
        assert store.coverage() == Coverage(18, 16, 0, gap_offsets=2, lost=0, twice=0, repeated_ids=0)


def test_a_broker_that_is_down_is_a_source_error_with_little_noise_and_nothing_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 1.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = Broker("external", [f"127.0.0.1:{unused.getsockname()[1]}"])
        threads = threading.active_count()
        with learning(nobody, "examples", tmp_path) as (ingest, store), caplog.at_level(logging.WARNING, "kafka"):
            for _ in range(2):
                with pytest.raises(SourceError, match=nobody.bootstrap_servers[0]):
                    ingest.step()
            assert store.next_offsets() == {}
        assert threading.active_count() == threads
    of_the_client = [line.name for line in caplog.records if line.name.startswith("kafka.")]
    assert len(of_the_client) == len(set(of_the_client))
