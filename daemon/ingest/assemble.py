"""Records into one batch for the store. Pure: each offset from the store's next one to the last record is in it exactly once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from daemon.core.states import GapReason, SkipReason
from daemon.core.stream import (
    Advance,
    Batch,
    DeadLetter,
    Example,
    Gap,
    Half,
    Position,
    Record,
    Reject,
    Skip,
    TopicPartition,
)
from daemon.ingest.arrow_decode import AT_ONCE, IN_DOUBT, decoded_columns
from daemon.ingest.decode import Decoder
from daemon.ingest.nulls import null_tallies
from daemon.ingest.record_columns import RecordColumns
from daemon.ingest.tails import tail_of
from daemon.runtime.arrow_examples import joined


@dataclass(frozen=True, slots=True)
class Assembly:
    """A batch ready for the store, and how many records were left out because the store has them already."""

    batch: Batch
    redelivered: int


def assemble(
    records: Sequence[Record],
    next_offsets: Mapping[TopicPartition, int],
    decoder: Decoder,
    now: datetime,
    passed: Mapping[TopicPartition, tuple[int, int]] = {},
) -> Assembly:
    """`now` is when the records were read; `passed` are the offsets behind them that hold nothing."""
    stream = _Stream(next_offsets)
    dead_letters: list[DeadLetter] = []
    halves: list[Half] = []
    skips: list[Skip] = []
    new = stream.new_among(RecordColumns.of(records))
    stream.pass_over(passed)

    def examples_of(some: RecordColumns) -> Sequence[Example]:
        if (columns := decoded_columns(some, decoder, now)) is not None:
            return columns
        if len(some) > IN_DOUBT:
            return all_examples_of(some, IN_DOUBT)
        examples, records = [], list(some)
        for record, decoded in zip(records, decoder.decode_all(records, now), strict=True):
            if isinstance(decoded, Example):
                examples.append(decoded)
            elif isinstance(decoded, Reject):
                dead_letters.append(_dead_letter(record, decoded, now))
            elif isinstance(decoded, Half):
                halves.append(decoded)
            else:
                skips.append(skip(record.position, decoded))
        return examples

    def all_examples_of(some: RecordColumns, at_once: int) -> Sequence[Example]:
        return joined([examples_of(some[first : first + at_once]) for first in range(0, len(some), at_once)])

    examples = all_examples_of(new, max(IN_DOUBT, AT_ONCE * len(new) // max(1, new.size)))
    tallies = null_tallies(new, decoder)
    batch = Batch(examples, dead_letters, stream.gaps, stream.advances(), skips=skips, halves=halves, tallies=tallies)
    return Assembly(batch, stream.redelivered)


def deleted(first_left: Mapping[TopicPartition, int], next_offsets: Mapping[TopicPartition, int]) -> Batch:
    """What the broker deleted before we read it, as gaps."""
    gaps = [
        Gap(*partition, next_offsets[partition], offset, GapReason.RETENTION)
        for partition, offset in first_left.items()
    ]
    advances = {partition: Advance(next_offsets[partition], offset) for partition, offset in first_left.items()}
    return Batch([], [], gaps, advances)


def skip(position: Position, reason: SkipReason) -> Skip:
    return Skip(position.topic, position.partition, position.offset, position.offset + 1, reason)


def merged(skips: Iterable[Skip]) -> list[Skip]:
    """Those that touch and have one reason become one, so that a store that skips much stays small."""
    done: list[Skip] = []
    for one in sorted(skips, key=lambda one: (one.topic, one.partition, one.start)):
        if done and replace(done[-1], start=one.start, stop=one.stop) == one and done[-1].stop == one.start:
            done[-1] = replace(done[-1], stop=one.stop)
        else:
            done.append(one)
    return done


class _Stream:
    """Walks over records and keeps in mind how far each partition is, and what was missing on the way."""

    def __init__(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        self.gaps: list[Gap] = []
        self.redelivered = 0
        self._before = next_offsets
        self._reached = dict(next_offsets)
        self._newest: dict[TopicPartition, Record] = {}
        self._passed: list[TopicPartition] = []

    def new_among(self, records: RecordColumns) -> RecordColumns:
        """Those that the store does not have."""
        new = np.ones(len(records), bool)
        for partition, start, stop in records.runs():
            new[start : self._first_new(records, partition, start, stop)] = False
        return records if new.all() else records.where(new)

    def _first_new(self, records: RecordColumns, partition: TopicPartition, start: int, stop: int) -> int:
        """From which place on a run is new; what was left out before it is a gap."""
        offset = int(records.offsets[start])
        reached = self._reached.get(partition, offset)
        if offset > reached:
            self.gaps.append(Gap(*partition, reached, offset, GapReason.NOT_RETURNED))
        first = min(stop, start + max(0, reached - offset))
        self.redelivered += first - start
        if first < stop:
            self._reached[partition] = offset + stop - start
            self._newest[partition] = records[stop - 1]
        return first

    def pass_over(self, passed: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """Not where records are missing before what was passed: they come again."""
        for partition, (start, stop) in passed.items():
            reached = self._reached.get(partition, start)
            if start <= reached < stop:
                self.gaps.append(Gap(*partition, reached, stop, GapReason.NOT_RETURNED))
                self._reached[partition] = stop
                self._passed.append(partition)

    def advances(self) -> dict[TopicPartition, Advance]:
        moved = {**dict.fromkeys(self._passed), **self._newest}
        return {
            partition: Advance(self._before.get(partition), self._reached[partition], record and tail_of(record))
            for partition, record in moved.items()
        }


def _dead_letter(record: Record, reject: Reject, now: datetime) -> DeadLetter:
    return DeadLetter(record.position, reject.reason, reject.detail, record.key, record.value, rejected_at=now)
