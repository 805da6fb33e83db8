"""An operator accepts a log as it is now: what is given up is written down as a gap, and reading goes on."""

from collections.abc import Mapping

from daemon.core.errors import ConflictError, NotFoundError, UsageError
from daemon.core.states import GapReason, TroubleReason
from daemon.core.stream import Advance, Batch, Gap, TopicPartition, Trouble, kafka_topic
from daemon.ingest.kafka_logs import next_name


def acceptance(
    topic: str,
    partition: int | None,
    begin_at: int | None,
    troubles: Mapping[TopicPartition, Trouble],
    next_offsets: Mapping[TopicPartition, int],
) -> Batch:
    """What to store so that the troubled partitions of a topic, or one of them, are read again.

    `begin_at` gives up what lies before that offset; it is asked for where a batch is damaged, and then it means one partition.
    """
    chosen = {
        ours: trouble
        for ours, trouble in troubles.items()
        if kafka_topic(ours.topic) == topic and partition in (None, ours.partition)
    }
    if not chosen:
        known = ", ".join(map(str, troubles)) or "none"
        where = topic if partition is None else f"{topic}[{partition}]"
        raise NotFoundError(f"{where} waits for nobody's word; partitions that are not read: {known}")
    if len(chosen) > 1 and begin_at is not None:
        raise UsageError(f"an offset belongs to one partition; add --partition, one of {_numbers(chosen)}")
    gaps: list[Gap] = []
    advances: dict[TopicPartition, Advance] = {}
    for ours, trouble in chosen.items():
        named, advance, given_up = _accepted(ours, trouble, next_offsets.get(ours), begin_at)
        advances[named] = advance
        gaps += given_up
    return Batch([], [], gaps, advances)


def _accepted(
    ours: TopicPartition, trouble: Trouble, stands: int | None, begin_at: int | None
) -> tuple[TopicPartition, Advance, list[Gap]]:
    begin = trouble.first if begin_at is None else begin_at
    if begin < trouble.first:
        raise UsageError(f"{ours} begins at offset {trouble.first}; --from {begin} lies before it")
    if trouble.reason is TroubleReason.DAMAGED:
        if begin <= max(trouble.next, stands or 0):
            raise UsageError(f"{ours} is damaged at offset {trouble.next}: say with --from where to go on behind it")
        if stands is not None and stands < trouble.next:
            raise ConflictError(
                f"records of {ours} from {stands} to {trouble.next - 1} are still being stored; try again"
            )
        given_up = Gap(*ours, max(trouble.next, stands or 0), begin, GapReason.SKIPPED)
        return ours, Advance(stands, begin), [given_up]
    skipped = [Gap(*ours, trouble.first, begin, GapReason.SKIPPED)] if begin > trouble.first else []
    if trouble.reason is TroubleReason.RETENTION and stands is not None:
        deleted = Gap(*ours, stands, trouble.first, GapReason.RETENTION)
        return ours, Advance(stands, begin), [deleted, *skipped]
    named = next_name(ours)
    return named, Advance(None, begin), [Gap(*named, gap.start, gap.stop, gap.reason) for gap in skipped]


def _numbers(chosen: Mapping[TopicPartition, Trouble]) -> str:
    return ", ".join(str(ours.partition) for ours in sorted(chosen))
