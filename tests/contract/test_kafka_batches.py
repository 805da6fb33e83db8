"""What our unpacking of fetched batches promises: exactly the records that kafka-python's own path gives, and no exception."""

import struct
import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords
from kafka.record.memory_records import MemoryRecordsBuilder

from daemon.core.stream import Position, Record, TopicPartition
from daemon.demo.brokers import Broker
from daemon.ingest import kafka_batches, kafka_records
from daemon.ingest.kafka_batches import PartitionBatches, Room, install, why_not
from daemon.ingest.kafka_codecs import TooLargeError, unpacked
from daemon.ingest.kafka_records import MANY, time
from daemon.ingest.record_columns import RecordColumns

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
PARTITION = KafkaPartition("examples", 3)
Entry = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]


@pytest.fixture(scope="module", autouse=True, params=[MANY, 1], ids=["record-by-record", "field-by-field"])
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Batches here are small: unpacked as small ones are, and as large ones are."""
    kafka_records.MANY, before = request.param, kafka_records.MANY
    yield
    kafka_records.MANY = before


class Ours(PartitionBatches):
    """Remembers what was damaged and where."""

    damage: tuple[int, Exception] | None = None
    named = TopicPartition(*PARTITION)

    def __init__(self, *given: Any, room: Room | None = None, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.room = room or Room(1 << 26)

    def damaged(self, error: Exception) -> None:
        self.damage = (self.next_fetch_offset, error)


def taken(part: PartitionBatches, most: int = 10) -> list[Record]:
    """As the client takes them: counted, and as what a list is extended by."""
    given = part.take(most)
    columns = RecordColumns.joined([*given])
    assert len(columns) == len(given)
    return list(columns)


def batch(entries: list[Entry], *, codec: int = 0, first: int = 0, magic: int = 2) -> bytes:
    builder = MemoryRecordsBuilder(magic, codec, batch_size=1 << 24, offset=first)
    for timestamp, key, value, headers in entries:
        builder.append(timestamp, key, value, headers)
    builder.close()
    built = bytearray(builder.buffer())
    struct.pack_into(">q", built, 0, first)  # a producer's batches begin at 0; the broker writes the real offset
    return bytes(built)


def theirs(data: bytes, fetch_offset: int) -> tuple[list[Record], int]:
    part = Fetcher.PartitionRecords(fetch_offset, PARTITION, MemoryRecords(data))
    given = part.take(1 << 30)
    return [converted(one) for one in given], part.next_fetch_offset


def converted(one: Any) -> Record:
    position = Position(one.topic, one.partition, one.offset)
    moment = None if one.timestamp is None else time(one.timestamp)
    return Record(position, moment, one.key, one.value, one.leader_epoch)


def ours(data: bytes, fetch_offset: int, step: int = 1 << 30) -> tuple[list[Record], int]:
    part = Ours(fetch_offset, PARTITION, MemoryRecords(data))
    records: list[Record] = []
    while part:
        records += taken(part, step)
    assert part.damage is None
    return records, part.next_fetch_offset


texts = st.none() | st.binary(max_size=300)
entries = st.lists(
    st.tuples(
        st.integers(0, 2**43),
        texts,
        texts,
        st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=9)), max_size=3),
    ),
    min_size=1,
    max_size=12,
)


@given(
    parts=st.lists(st.tuples(entries, st.sampled_from(sorted(CODECS.values())), st.integers(0, 5)), max_size=4),
    skip=st.integers(0, 20),
    step=st.integers(1, 9),
)
def test_the_same_records_as_the_client_gives(parts: list[tuple[Any, int, int]], skip: int, step: int) -> None:
    """Any codec, headers, tombstones, holes between batches, from any offset, in pieces of any size."""
    data, offset = b"", 5
    for given_entries, codec, hole in parts:
        data += batch(given_entries, codec=codec, first=offset)
        offset += len(given_entries) + hole
    start = 5 + min(skip, max(0, offset - 6))  # the broker never answers with less than was asked for
    assert ours(data, start, step) == theirs(data, start)


@pytest.mark.parametrize("magic", [0, 1])
def test_old_message_formats(magic: int) -> None:
    data = batch([(1000 + n, b"k", b"v%d" % n, []) for n in range(5)], magic=magic)
    assert ours(data, 0) == theirs(data, 0)
    assert len(ours(data, 0)[0]) == 5


@pytest.mark.parametrize("size", [0, 1, 62, 63, 64, 127, 128, 8190, 8192, 70_000, 2_200_000])
def test_sizes_around_each_length_of_a_variable_integer(size: int) -> None:
    data = batch([(0, b"k" * size, b"v" * size, []), (1 << 40, b"", b"", [])])
    assert ours(data, 0) == theirs(data, 0)
    assert len(ours(data, 0)[0]) == 2


def test_a_wrong_checksum_ends_the_answer_before_it_and_is_told() -> None:
    good, bad = batch([(0, None, b"a", []), (0, None, b"b", [])]), bytearray(batch([(0, None, b"c", [])], first=2))
    bad[-2] ^= 1
    part = Ours(0, PARTITION, MemoryRecords(good + bytes(bad)))
    assert [record.value for record in taken(part)] == [b"a", b"b"]
    assert part.damage is None
    assert taken(part) == []
    assert not part
    assert part.damage is not None
    assert part.damage[0] == part.next_fetch_offset == 2
    assert "checksum" in str(part.damage[1])


@given(data=st.data())
def test_damage_behind_a_right_checksum_is_found_where_the_client_finds_it(data: st.DataObject) -> None:
    good = batch([(n, b"key", b"value %d" % n, [("h", b"x")]) for n in range(3)])
    place = data.draw(st.integers(61, len(good) - 1))
    bad = bytearray(good)
    bad[place] = data.draw(st.integers(0, 127))
    part = Ours(0, PARTITION, MemoryRecords(bytes(bad)), check_crcs=False)
    client = Fetcher.PartitionRecords(0, PARTITION, MemoryRecords(bytes(bad)), check_crcs=False)
    try:
        expected = [converted(one) for one in client.record_iterator]
    except Exception:
        taken(part)
        assert part.damage is not None
    else:
        assert (taken(part), part.damage) == (expected, None)


def test_a_codec_that_is_not_installed_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch([(0, None, b"a" * 1000, [])], codec=CODECS["zstd"])
    monkeypatch.setattr("kafka.codec.zstd", None)
    part = Ours(0, PARTITION, MemoryRecords(data))
    assert taken(part) == []
    assert part.damage is not None
    assert "zstd" in str(part.damage[1])


@pytest.mark.parametrize("magic", [1, 2])
@pytest.mark.parametrize("codec", sorted(CODECS.values())[1:])
def test_a_batch_that_unpacks_to_more_than_allowed_is_damage_and_what_is_before_it_is_read(
    codec: int, magic: int
) -> None:
    if magic == 1 and codec == CODECS["zstd"]:
        pytest.skip("the old format has no zstd")
    small = batch([(0, None, b"a" * 900, [])], codec=codec, magic=magic)
    bomb = batch([(0, None, bytes(1 << 20), [])], codec=codec, first=1, magic=magic)
    part = Ours(0, PARTITION, MemoryRecords(small + bomb), room=Room(10_000))
    assert [record.position.offset for record in taken(part)] == [0]
    assert taken(part) == []
    assert part.damage is not None
    assert part.damage[0] == 1
    assert "more than 10,000 bytes, which is kafka.max_unpacked" in str(part.damage[1])


@pytest.mark.parametrize("name", ["gzip", "snappy", "lz4", "zstd"])
def test_a_bomb_is_never_built_whole(name: str) -> None:
    compress = {"gzip": gzip_encode, "snappy": snappy_encode, "lz4": lz4_encode, "zstd": zstd_encode}[name]
    bomb, most = compress(bytes(50 << 20)), 1 << 20
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        unpacked(CODECS[name], bomb, most)
    assert tracemalloc.get_traced_memory()[1] < 4 * most
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["gzip", "lz4", "zstd"])
@given(content=st.binary(max_size=2000), repeat=st.integers(1, 300))
def test_what_is_within_the_limit_is_unpacked_as_it_was(name: str, content: bytes, repeat: int) -> None:
    compress = {"gzip": gzip_encode, "lz4": lz4_encode, "zstd": zstd_encode}[name]
    packed = compress(content * repeat)
    assert unpacked(CODECS[name], packed, len(content) * repeat) == content * repeat


@pytest.mark.parametrize("size", [0, -4, -100])
def test_a_snappy_stream_that_goes_backwards_is_an_error_and_no_endless_loop(size: int) -> None:
    header = snappy_encode(b"")[:16]
    with pytest.raises(CorruptRecordError, match="snappy block"):
        unpacked(CODECS["snappy"], header + struct.pack(">i", size), 1000)


def test_when_one_poll_has_unpacked_enough_the_rest_is_asked_for_again() -> None:
    values = [bytes([number]) * 1000 for number in range(5)]
    parts = [batch([(0, None, value, [])], codec=1, first=2 * number) for number, value in enumerate(values)]
    room = Room(2500)
    first = Ours(0, PARTITION, MemoryRecords(b"".join(parts)), room=room)
    other = Ours(0, PARTITION, MemoryRecords(parts[0]), room=room)
    got = taken(first)
    assert [record.value for record in got] == values[:3]
    assert (first.next_fetch_offset, bool(first), first.damage) == (got[-1].position.offset + 1, False, None)
    assert (taken(other), other.next_fetch_offset, bool(other)) == ([], 0, False)
    room.clear()
    again = Ours(first.next_fetch_offset, PARTITION, MemoryRecords(b"".join(parts[3:])), room=room)
    assert [record.value for record in taken(again)] == values[3:]


def test_another_release_of_the_client_is_read_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not() is None
    monkeypatch.setattr(kafka_batches, "version", lambda _: "3.9.9")
    assert "3.9.9" in str(why_not())
    monkeypatch.undo()
    monkeypatch.setattr(Fetcher, "PartitionRecords", type("Other", (), {"__init__": lambda self, wire: None}))
    assert "arguments" in str(why_not())


# --- on a real broker ---------------------------------------------------------------------------------------------


@pytest.fixture
def full_topic(brokers: Any) -> Iterator[tuple[Broker, str]]:
    """Every codec, headers, tombstones, transactions kept and aborted, in one partition."""
    broker = brokers.get("apache-kafka")
    topic = f"full-{uuid.uuid4().hex}"
    create(broker, topic, {})
    for codec in ("gzip", "snappy", "lz4", "zstd", None):
        fill(broker, topic, compression_type=codec, linger_ms=20)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=topic)
    producer.init_transactions()
    for keep in (True, False, True):
        producer.begin_transaction()
        for number in range(3):
            producer.send(topic, b"%s %d" % (str(keep).encode(), number))
        producer.flush()
        producer.commit_transaction() if keep else producer.abort_transaction()
    producer.close()
    fill(broker, topic)
    yield broker, topic


def create(broker: Broker, topic: str, configs: dict[str, str]) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    wanted = {"num_partitions": 1, "replication_factor": 1, "configs": configs}
    admin.create_topics({topic: wanted}, timeout_ms=10_000, wait_for_metadata=True)
    admin.close()


def fill(broker: Broker, topic: str, **settings: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, **settings)
    sent = [
        producer.send(topic, None if number == 7 else b"v" * number * 40, key=b"k%d" % number, headers=[("h", b"1")])
        for number in range(20)
    ]
    producer.flush()
    for future in sent:
        future.get(10)
    producer.close()


def read_to_the_end(broker: Broker, topic: str, *, fast: bool, isolation: str) -> list[Record]:
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers,
        group_id=None,
        isolation_level=isolation,
        auto_offset_reset="earliest",
    )
    try:
        if fast:
            names = {KafkaPartition(topic, 0): TopicPartition(topic, 0)}
            assert install(consumer, names, lambda *damage: pytest.fail(str(damage)), Room(1 << 26))
        partition = KafkaPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        records: list[Any] = []
        for _ in range(100):
            records += consumer.poll(timeout_ms=200, max_records=7).get(partition, [])
            if consumer.position(partition) >= end:
                return list(RecordColumns.joined(records)) if fast else [converted(one) for one in records]
        raise AssertionError("the end was not reached")
    finally:
        consumer.close(autocommit=False)


@pytest.mark.kafka
@pytest.mark.parametrize(("isolation", "expected"), [("read_committed", 126), ("read_uncommitted", 129)])
def test_a_real_topic_reads_the_same_on_both_paths(
    full_topic: tuple[Broker, str], isolation: str, expected: int
) -> None:
    slow = read_to_the_end(*full_topic, fast=False, isolation=isolation)
    assert len(slow) == expected
    assert read_to_the_end(*full_topic, fast=True, isolation=isolation) == slow


@pytest.mark.kafka
def test_a_topic_with_the_brokers_own_time_reads_the_same_on_both_paths(brokers: Any) -> None:
    broker = brokers.get("apache-kafka")
    topic = f"stamped-{uuid.uuid4().hex}"
    create(broker, topic, {"message.timestamp.type": "LogAppendTime"})
    fill(broker, topic, compression_type="gzip", linger_ms=20)
    slow = read_to_the_end(broker, topic, fast=False, isolation="read_committed")
    assert len(slow) == 20
    assert read_to_the_end(broker, topic, fast=True, isolation="read_committed") == slow
