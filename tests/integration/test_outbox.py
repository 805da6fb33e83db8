"""Dead letters copied to a topic of a real Apache Kafka: each at least once, whatever dies, and ingest never waits."""

import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition

from daemon.config import KafkaConfig
from daemon.core.errors import SourceError
from daemon.core.states import RejectReason
from daemon.core.stream import Advance, Batch, DeadLetter, Position, TopicPartition
from daemon.demo.brokers import Broker, create_topic
from daemon.ingest import kafka_letters, outbox
from daemon.ingest.kafka_letters import KafkaLetters
from daemon.ingest.outbox import MARK, Outbox, Publisher
from daemon.runtime.telemetry import LearnerMetrics
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import START, ManualClock
from tests.conftest import APACHE_KAFKA


class Crash(Exception):
    """Stands for the process dying at a failpoint."""


class Shelf:
    """A publisher in memory."""

    def __init__(self) -> None:
        self.taken: list[DeadLetter] = []
        self.refuses: str | None = None

    def publish(self, letters: Sequence[DeadLetter]) -> None:
        if self.refuses:
            raise SourceError(self.refuses)
        self.taken += letters

    def close(self) -> None:
        self.taken.append(letter(-1))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckdbStore]:
    opened = DuckdbStore.open(tmp_path / "store.duckdb", memory_limit=1 << 28, threads=1)
    yield opened
    opened.close()


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"letters-{uuid.uuid4().hex}"
    create_topic(broker, name, partitions=1)
    return name


def letter(offset: int, value: bytes | None = b"\xff not JSON", key: bytes | None = b"original") -> DeadLetter:
    return DeadLetter(Position("examples", 1, offset), RejectReason.NOT_JSON, "é is wrong", key, value, START)


def keep(store: DuckdbStore, *letters: DeadLetter) -> None:
    stands = store.next_offsets().get(TopicPartition("examples", 1))
    advance = Advance(stands, letters[-1].position.offset + 1)
    store.commit(Batch([], letters, [], {TopicPartition("examples", 1): advance}))


def opened(
    store: DuckdbStore,
    publisher: Publisher,
    *,
    metrics: LearnerMetrics | None = None,
    tell: Callable[[str, str], None] = lambda state, detail: None,
) -> Outbox:
    clock = ManualClock()
    clock.advance(timedelta(seconds=90))
    return Outbox(store, publisher, clock=clock, rng=random.Random(1), metrics=metrics or LearnerMetrics(), tell=tell)


def copies(broker: Broker, topic: str, count: int) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    partition = KafkaPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    records: list[Any] = []
    for _ in range(50):
        records += consumer.poll(timeout_ms=200).get(partition, [])
        if len(records) >= count:
            break
    consumer.close(autocommit=False)
    return records


def on_kafka(broker: Broker, topic: str) -> KafkaLetters:
    return KafkaLetters(KafkaConfig(bootstrap_servers=broker.bootstrap_servers), topic)


def test_letters_wait_while_nobody_takes_them_and_then_go_in_order(store: DuckdbStore) -> None:
    shelf, metrics, told = Shelf(), LearnerMetrics(), list[tuple[str, str]]()
    keep(store, letter(0), letter(1), letter(2))
    shelf.refuses = "the topic is missing"
    stop = StopAfter(lambda: len(shelf.taken) >= 3, mend=lambda: setattr(shelf, "refuses", None))
    box = opened(store, shelf, metrics=metrics, tell=lambda state, detail: told.append((state, detail)))
    with pytest.raises(SourceError):
        box.step()
    assert metrics.registry.get_sample_value("relearnd_outbox_letters") == 3
    assert metrics.registry.get_sample_value("relearnd_outbox_age_seconds") == 90
    box.run(stop, lambda: None)
    assert [one.position.offset for one in shelf.taken] == [0, 1, 2, -1]
    assert told[0] == ("degraded", "the topic is missing")
    assert told[-1] == ("ok", "")
    assert metrics.registry.get_sample_value("relearnd_outbox_letters") == 0
    assert metrics.registry.get_sample_value("relearnd_outbox_age_seconds") == 0


class StopAfter(threading.Event):
    """Set once the condition holds; each wait mends what was broken and takes no time."""

    def __init__(self, done: Callable[[], bool], mend: Callable[[], None]) -> None:
        super().__init__()
        self._done, self._mend = done, mend

    def is_set(self) -> bool:
        return self._done()

    def wait(self, timeout: float | None = None) -> bool:
        self._mend()
        return self.is_set()


def test_a_letter_is_copied_once_and_not_again_after_a_restart(store: DuckdbStore) -> None:
    shelf = Shelf()
    keep(store, letter(0), letter(1))
    assert opened(store, shelf).step() == 2
    keep(store, letter(2))
    assert [opened(store, shelf).step() for _ in range(2)] == [1, 0]
    assert [one.position.offset for one in shelf.taken] == [0, 1, 2]


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_a_copy_has_the_bytes_and_says_what_was_wrong(broker: Broker, topic: str, store: DuckdbStore) -> None:
    keep(store, letter(4), letter(5, value=None, key=None))
    publisher = on_kafka(broker, topic)
    opened(store, publisher).step()
    publisher.close()
    first, second = copies(broker, topic, 2)
    assert (first.key, first.value) == (b"examples-1-4", b"\xff not JSON")
    assert dict(first.headers) == {
        "relearnd-reason": b"not_json",
        "relearnd-detail": "é is wrong".encode(),
        "relearnd-topic": b"examples",
        "relearnd-partition": b"1",
        "relearnd-offset": b"4",
        "relearnd-rejected-at": START.isoformat().encode(),
        "relearnd-key": b"original",
    }
    assert (second.key, second.value) == (b"examples-1-5", None)
    assert "relearnd-key" not in dict(second.headers)


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_dying_between_delivery_and_mark_repeats_and_loses_nothing(
    broker: Broker, topic: str, store: DuckdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(name: str) -> None:
        if name == "before_outbox_mark":
            raise Crash

    keep(store, letter(0), letter(1))
    with monkeypatch.context() as dying:
        dying.setattr(outbox, "failpoint", crash)
        publisher = on_kafka(broker, topic)
        with pytest.raises(Crash):
            opened(store, publisher).step()
        publisher.close()
    assert store.get(MARK) is None
    keep(store, letter(2))
    publisher = on_kafka(broker, topic)
    assert opened(store, publisher).step() == 3
    publisher.close()
    keys = [record.key for record in copies(broker, topic, 5)]
    assert keys == [b"examples-1-%d" % offset for offset in (0, 1, 0, 1, 2)]


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_a_topic_that_is_missing_is_named_and_taken_up_when_it_comes(
    broker: Broker, store: DuckdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_letters, "DELIVERY_LIMIT", 1.0)
    topic = f"later-{uuid.uuid4().hex}"
    publisher = on_kafka(broker, topic)
    keep(store, letter(0))
    with pytest.raises(SourceError, match=f"{topic}.*create it"):
        opened(store, publisher).step()
    create_topic(broker, topic, partitions=1)
    monkeypatch.undo()
    assert opened(store, publisher).step() == 1
    publisher.close()
    assert [record.key for record in copies(broker, topic, 1)] == [b"examples-1-0"]


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_a_letter_too_large_for_the_topic_goes_without_its_bytes(
    broker: Broker, topic: str, store: DuckdbStore
) -> None:
    keep(store, letter(0, value=b"x" * (2 << 20)), letter(1))
    publisher = on_kafka(broker, topic)
    assert opened(store, publisher).step() == 2
    publisher.close()
    found = {record.key: record for record in copies(broker, topic, 2)}
    assert found[b"examples-1-0"].value is None
    assert dict(found[b"examples-1-0"].headers)["relearnd-value-left-out"] == b"2097152 bytes"
    assert found[b"examples-1-1"].value == b"\xff not JSON"
