"""What every Source promises, asked of the scripted one and of Kafka, embedded and real."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient

from daemon.config import KafkaConfig
from daemon.core.ports import Source
from daemon.core.states import TroubleReason
from daemon.core.stream import Position, Record, TopicPartition
from daemon.demo.brokers import Broker, create_topic
from daemon.ingest import kafka_batches
from daemon.ingest.kafka_source import KafkaSource
from daemon.ingest.tails import tail_of
from daemon.testing.clock import START
from daemon.testing.source import ScriptedSource
from tests.conftest import BROKER_KINDS, Brokers

TOPIC = "examples"


class ScriptedStream:
    """What the tests ask of a stream: something to write to and sources that read it."""

    topic = TOPIC

    def __init__(self) -> None:
        self._source = ScriptedSource()
        self._written: dict[int, int] = {}

    def write(self, partition: int, *values: bytes) -> None:
        for value in values:
            offset = self._written.get(partition, 0)
            self._written[partition] = offset + 1
            self._source.produce(Record(Position(TOPIC, partition, offset), START, None, value))

    def delete_below(self, partition: int, offset: int) -> None:
        self._source.delete_below(TopicPartition(TOPIC, partition), offset)

    def source(self) -> Source:
        return self._source

    def close(self) -> None:
        self._source.close()


class KafkaStream:
    def __init__(self, broker: Broker) -> None:
        self.topic = f"examples-{uuid.uuid4().hex}"
        self._broker = broker
        self._sources: list[KafkaSource] = []
        create_topic(broker, self.topic, partitions=2)
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)

    def write(self, partition: int, *values: bytes) -> None:
        sent = [self._producer.send(self.topic, value, partition=partition) for value in values]
        for future in sent:
            future.get(10)

    def delete_below(self, partition: int, offset: int) -> None:
        if self._broker.kind == "tansu":
            pytest.skip("the embedded broker deletes no records")
        admin = KafkaAdminClient(bootstrap_servers=self._broker.bootstrap_servers)
        admin.delete_records({KafkaPartition(self.topic, partition): offset})
        admin.close()

    def source(self) -> Source:
        source = KafkaSource(KafkaConfig(bootstrap_servers=self._broker.bootstrap_servers, topics=[self.topic]))
        self._sources.append(source)
        return source

    def close(self) -> None:
        self._producer.close()
        for source in self._sources:
            source.close()


Stream = ScriptedStream | KafkaStream


@pytest.fixture(params=["scripted", *BROKER_KINDS])
def stream(request: pytest.FixtureRequest, brokers: Brokers) -> Iterator[Stream]:
    stream = ScriptedStream() if request.param == "scripted" else KafkaStream(brokers.get(request.param))
    yield stream
    stream.close()


def read(source: Source, count: int) -> list[Record]:
    """Polls until so many records came; what is missing after thirty seconds fails the test that asked."""
    records: list[Record] = []
    for _ in range(60):
        records += source.poll(0.5)
        if len(records) >= count:
            break
    return records


def offsets(records: Sequence[Record], partition: int) -> list[int]:
    return [record.position.offset for record in records if record.position.partition == partition]


def test_without_offsets_everything_is_read_from_the_beginning(stream: Stream) -> None:
    stream.write(0, b"a", b"b", b"c")
    stream.write(1, b"d")
    source = stream.source()
    assert source.start({}) == {}
    records = read(source, 4)
    assert (offsets(records, 0), offsets(records, 1)) == ([0, 1, 2], [0])
    assert sorted(record.value or b"" for record in records) == [b"a", b"b", b"c", b"d"]
    assert {record.position.topic for record in records} == {stream.topic}
    assert all(record.timestamp is not None and record.timestamp.utcoffset() is not None for record in records)


def test_reading_goes_on_at_the_given_offsets(stream: Stream) -> None:
    stream.write(0, b"a", b"b", b"c")
    stream.write(1, b"d", b"e")
    source = stream.source()
    assert source.start({TopicPartition(stream.topic, 0): 2}) == {}
    records = read(source, 3)
    assert (offsets(records, 0), offsets(records, 1)) == ([2], [0, 1])


def test_a_client_we_do_not_know_gives_the_same_records(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.write(0, b"a", b"b", b"c")
    fast = stream.source()
    fast.start({})
    expected = read(fast, 3)
    monkeypatch.setattr(kafka_batches, "why_not", lambda: "it is another release")
    slow = stream.source()
    slow.start({})
    assert read(slow, 3) == expected


def test_starting_again_goes_back(stream: Stream) -> None:
    stream.write(0, b"a", b"b", b"c", b"d")
    source = stream.source()
    source.start({})
    assert len(read(source, 4)) == 4
    source.start({TopicPartition(stream.topic, 0): 1})
    assert offsets(read(source, 3), 0) == [1, 2, 3]


def test_a_poll_without_records_is_empty_and_later_ones_come(stream: Stream) -> None:
    source = stream.source()
    source.start({})
    assert len(source.poll(0.05)) == 0
    stream.write(1, b"late")
    assert [record.value for record in read(source, 1)] == [b"late"]


def test_lag_falls_to_nothing(stream: Stream) -> None:
    stream.write(0, b"a", b"b", b"c")
    source = stream.source()
    source.start({})
    read(source, 3)
    source.poll(0.05)
    assert source.lag()[TopicPartition(stream.topic, 0)] == 0


def test_offsets_of_other_topics_are_left_alone(stream: Stream) -> None:
    stream.write(0, b"a")
    source = stream.source()
    assert source.start({TopicPartition("of-long-ago", 0): 17}) == {}
    assert offsets(read(source, 1), 0) == [0]


def test_what_was_deleted_before_it_was_read_is_told(stream: Stream) -> None:
    stream.write(0, *(b"%d" % number for number in range(6)))
    stream.delete_below(0, 4)
    partition = TopicPartition(stream.topic, 0)
    source = stream.source()
    assert source.start({partition: 1}) == {partition: 4}
    assert offsets(read(source, 2), 0) == [4, 5]


def test_a_new_partition_begins_where_its_log_begins(stream: Stream) -> None:
    stream.write(0, *(b"%d" % number for number in range(6)))
    stream.delete_below(0, 4)
    source = stream.source()
    assert source.start({}) == {}
    assert offsets(read(source, 2), 0) == [4, 5]


def test_a_log_shorter_than_what_was_read_is_not_read_while_the_others_are(stream: Stream) -> None:
    stream.write(0, b"a")
    stream.write(1, b"b")
    partition = TopicPartition(stream.topic, 0)
    source = stream.source()
    source.start({partition: 100})
    assert [record.value for record in read(source, 1)] == [b"b"]
    assert {ours: trouble.reason for ours, trouble in source.troubles().items()} == {partition: TroubleReason.LOG_SHORT}
    assert "100" in source.troubles()[partition].detail


def test_the_record_below_the_next_offset_is_recognised(stream: Stream) -> None:
    stream.write(0, b"a", b"b", b"c")
    stream.write(1, b"d")
    partition = TopicPartition(stream.topic, 0)
    source = stream.source()
    source.start({})
    tail = tail_of(next(one for one in read(source, 4) if one.position == (stream.topic, 0, 1)))
    source.start({partition: 2}, {partition: tail})
    assert source.troubles() == {}
    assert offsets(read(source, 2), 0) == [2]


@pytest.mark.parametrize("changed", [{"value_hash": "of another"}, {"key_hash": "of another"}, {"timestamp": 17}])
def test_a_log_with_another_record_there_is_not_read_while_the_others_are(
    stream: Stream, changed: dict[str, Any]
) -> None:
    stream.write(0, b"a", b"b", b"c")
    stream.write(1, b"d")
    partition = TopicPartition(stream.topic, 0)
    source = stream.source()
    source.start({})
    tail = tail_of(next(one for one in read(source, 4) if one.position == (stream.topic, 0, 1)))
    source.start({partition: 2}, {partition: replace(tail, **changed)})
    assert [record.value for record in read(source, 1)] == [b"d"]
    assert {ours: trouble.reason for ours, trouble in source.troubles().items()} == {
        partition: TroubleReason.LOG_REPLACED
    }


def test_a_log_read_to_its_end_is_no_short_log(stream: Stream) -> None:
    stream.write(0, *(b"%d" % number for number in range(20)))
    partition = TopicPartition(stream.topic, 0)
    source = stream.source()
    assert source.start({partition: 20}) == {}
    stream.write(0, b"more")
    assert offsets(read(source, 1), 0) == [20]


def test_reporting_never_raises(stream: Stream) -> None:
    source = stream.source()
    source.report({TopicPartition(stream.topic, 0): 3})
    source.start({})
    source.report({TopicPartition(stream.topic, 0): 3, TopicPartition("unknown", 9): 1})
    source.close()
    source.report({TopicPartition(stream.topic, 0): 3})
