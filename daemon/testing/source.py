"""A stream in memory. What goes wrong, and when, is written down in the test's input: one step a poll, then all is well."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.core.errors import SourceError
from daemon.core.states import TroubleReason
from daemon.core.stream import Record, Tail, TopicPartition, Trouble
from daemon.ingest.tails import is_same, tail_of


@dataclass(frozen=True, slots=True)
class Deliver:
    """The next records, at most so many per partition."""

    most: int = 5000


@dataclass(frozen=True, slots=True)
class Redeliver:
    """The next records, at most so many per partition, after so many already given once more."""

    back: int
    most: int = 5000


@dataclass(frozen=True, slots=True)
class Fail:
    """SourceError with these words."""

    words: str


Step = Deliver | Redeliver | Fail


class ScriptedSource:
    """Offsets of a partition may have holes, but must rise."""

    def __init__(self, records: Sequence[Record] = (), *, script: Sequence[Step] = ()) -> None:
        self.reported: dict[TopicPartition, int] = {}
        self._logs: dict[TopicPartition, list[Record]] = defaultdict(list)
        self._first: dict[TopicPartition, int] = defaultdict(int)
        self._next: dict[TopicPartition, int] = {}
        self._script = list(script)
        self._started = False
        self._troubles: dict[TopicPartition, Trouble] = {}
        self.produce(*records)

    def produce(self, *records: Record) -> None:
        for record in records:
            self._logs[record.position.topic_partition].append(record)

    def delete_below(self, partition: TopicPartition, offset: int) -> None:
        """What retention does."""
        log = self._logs[partition]
        del log[: self._index(partition, offset)]
        self._first[partition] = offset

    def recreate(self, partition: TopicPartition) -> None:
        """What deleting and creating the topic does."""
        self._logs[partition] = []
        self._first[partition] = 0

    def start(
        self, next_offsets: Mapping[TopicPartition, int], tails: Mapping[TopicPartition, Tail] | None = None
    ) -> Mapping[TopicPartition, int]:
        self._next = dict(next_offsets)
        self._started = True
        self._troubles = {}
        first_left = {}
        for partition in self._logs:
            stands = self._next.setdefault(partition, self._first[partition])
            reason = self._unlike_what_was_read(partition, stands, (tails or {}).get(partition))
            if reason:
                self._troubles[partition] = Trouble(reason, f"{partition} at {stands}", self._first[partition], stands)
            elif stands < self._first[partition]:
                first_left[partition] = self._next[partition] = self._first[partition]
        return first_left

    def _unlike_what_was_read(self, partition: TopicPartition, stands: int, tail: Tail | None) -> TroubleReason | None:
        if stands > self._end(partition):
            return TroubleReason.LOG_SHORT
        there = {record.position.offset: record for record in self._logs[partition]}
        if tail and tail.offset in there and not is_same(tail, tail_of(there[tail.offset])):
            return TroubleReason.LOG_REPLACED
        return None

    def troubles(self) -> Mapping[TopicPartition, Trouble]:
        return self._troubles

    def poll(self, timeout: float) -> Sequence[Record]:
        if not self._started:
            raise SourceError("the source was not started again after it failed")
        step = self._script.pop(0) if self._script else Deliver()
        match step:
            case Fail(words):
                self._started = False
                raise SourceError(words)
            case Redeliver(back, most):
                return self._take(back=back, most=most)
            case Deliver(most):
                return self._take(back=0, most=most)

    def _take(self, *, back: int, most: int) -> list[Record]:
        taken = []
        for partition, log in self._logs.items():
            if partition in self._troubles:
                continue
            begin = self._index(partition, self._next.setdefault(partition, self._first[partition]))
            records = log[max(0, begin - back) : begin + most]
            if records:
                self._next[partition] = records[-1].position.offset + 1
            taken += records
        return taken

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        return {}

    def look(self) -> None:
        pass

    def report(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        self.reported.update(next_offsets)

    def lag(self) -> Mapping[TopicPartition, int]:
        return {partition: self._end(partition) - offset for partition, offset in self._next.items()}

    def close(self) -> None:
        self._started = False

    def _index(self, partition: TopicPartition, offset: int) -> int:
        return bisect_left(self._logs[partition], offset, key=lambda record: record.position.offset)

    def _end(self, partition: TopicPartition) -> int:
        log = self._logs[partition]
        return log[-1].position.offset + 1 if log else self._first[partition]
