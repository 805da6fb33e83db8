"""Whether a partition's log is still the one that was read: not recreated, cut, or written anew since."""

from collections.abc import Callable, Mapping, Sequence

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import OffsetOutOfRangeError

from daemon.core.errors import SourceError
from daemon.core.states import TroubleReason
from daemon.core.stream import Record, Tail, TopicPartition, Trouble, kafka_topic
from daemon.ingest.kafka_batches import stands_at
from daemon.ingest.tails import is_same, tail_of

log = structlog.get_logger(__name__)

PROBE_LIMIT = 2.0  # seconds for a record to arrive that ought to be there
COMPARE_LIMIT = 10.0  # seconds for brokers to answer what they hold where the store stands
_PROBE_STEP = 0.1

Poll = Callable[[float], Mapping[KafkaPartition, Sequence[Record]]]  # one record, waiting at most so many seconds


def stored_name(partition: KafkaPartition, stored: Mapping[TopicPartition, int]) -> TopicPartition:
    """What the store calls a partition of Kafka's: the newest of the logs that were accepted under that name."""
    logs = [
        ours for ours in stored if ours.partition == partition.partition and kafka_topic(ours.topic) == partition.topic
    ]
    return max(logs, key=_generation, default=TopicPartition(*partition))


def next_name(partition: TopicPartition) -> TopicPartition:
    """What the store will call the log that takes the place of this one."""
    return TopicPartition(f"{kafka_topic(partition.topic)}~{_generation(partition) + 1}", partition.partition)


def _generation(partition: TopicPartition) -> int:
    return int(partition.topic.partition("~")[2] or 1)


def short(partition: TopicPartition, *, stands: int, first: int, end: int) -> Trouble:
    return Trouble(
        TroubleReason.LOG_SHORT,
        f"{partition} ends at offset {end}, but the store has read up to {stands}: the topic was recreated or its log cut, or "
        f"these are the wrong brokers. {_what_to_do(partition)}",
        first,
        stands,
    )


def replaced(partition: TopicPartition, *, offset: int, stands: int, first: int) -> Trouble:
    return Trouble(
        TroubleReason.LOG_REPLACED,
        f"{partition} holds another record at offset {offset} than the one that was read there: the topic was recreated, its "
        f"log cut and written anew, or these are the wrong brokers. {_what_to_do(partition)}",
        first,
        stands,
    )


def parted(partition: TopicPartition, *, at: int | None, stands: int, first: int) -> Trouble:
    where = "" if at is None else f" at offset {at}"
    begin = "" if at is None else f"; with `--from {at}` it is read from where they part"
    return Trouble(
        TroubleReason.LOG_REPLACED,
        f"{partition}: by their leader epochs the brokers' log parts from the one that was read up to {stands}{where}: a broker "
        f"that lacked records became leader, or these are the wrong brokers. {_what_to_do(partition)}{begin}",
        first,
        stands,
    )


def cut_by_retention(partition: TopicPartition, *, stands: int, first: int) -> Trouble:
    return Trouble(
        TroubleReason.RETENTION,
        f"{partition}: the broker deleted offsets {stands} to {first - 1} before they were read, and kafka.on_gap says halt. "
        f"Raise the topic's retention, then `relearnd accept-log {kafka_topic(partition.topic)}` stores the gap and goes on",
        first,
        stands,
    )


def damaged(partition: TopicPartition, *, offset: int, why: Exception) -> Trouble:
    return Trouble(
        TroubleReason.DAMAGED,
        f"{partition} cannot be read at offset {offset}: {why}. It is tried again and again; "
        f"`relearnd accept-log {kafka_topic(partition.topic)} --from OFFSET` gives up what lies before an offset behind it",
        offset,
        offset,
    )


def _what_to_do(partition: TopicPartition) -> str:
    return (
        "It is not read until the old log is back, or `relearnd accept-log "
        f"{kafka_topic(partition.topic)}` says that the new one is meant: it is then read from its beginning"
    )


def holds(consumer: KafkaConsumer, poll: Poll, partition: KafkaPartition, offset: int) -> bool:
    """Whether there is a record. Asked only in doubt: the embedded broker may say that a log ends inside its last batch."""
    consumer.assign([partition])
    consumer.seek(partition, offset)
    try:
        return bool(poll(PROBE_LIMIT))
    except OffsetOutOfRangeError:
        return False


def strangers(consumer: KafkaConsumer, poll: Poll, tails: Mapping[KafkaPartition, Tail]) -> list[KafkaPartition]:
    """The partitions that hold another record where their tail stood. What compaction took away cannot be compared.

    SourceError while brokers do not answer: what was not compared is not read.
    A partition that has answered is given back rather than paused: kafka-python 3.0 may forget what it parked in a pause.
    """
    waiting = dict(tails)
    consumer.assign(list(waiting))
    for partition, tail in waiting.items():
        consumer.seek(partition, tail.offset)
    others = []
    for _ in range(int(COMPARE_LIMIT / _PROBE_STEP) + len(tails)):
        if not _unanswered(consumer, waiting):
            break
        for partition, records in poll(_PROBE_STEP).items():
            found, tail = tail_of(records[0]), waiting.pop(partition)
            consumer.assign(list(waiting))
            if found.offset == tail.offset and not is_same(tail, found):
                others.append(partition)
    if unanswered := _unanswered(consumer, waiting):
        raise SourceError(
            f"brokers have not answered within {COMPARE_LIMIT:.0f} s what they hold where the store stands, so nothing is read: "
            f"{', '.join(map(str, unanswered))}"
        )
    if waiting:
        log.info(f"not compared with what was read before: {', '.join(map(str, waiting))}", action="tail_not_found")
    return others


def _unanswered(consumer: KafkaConsumer, waiting: Mapping[KafkaPartition, Tail]) -> list[KafkaPartition]:
    """Not those that the client has gone on from, which hold nothing there, nor those that rest because they are damaged there."""
    resting = consumer.paused()
    return [
        partition
        for partition, tail in waiting.items()
        if partition not in resting and stands_at(consumer, partition) in (None, tail.offset)
    ]
