"""The nouns of the stream, from a broker's record to where it ended. Import them from `daemon.core.types`, as all others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeVar, dataclass_transform

from daemon.core.states import GapReason, HalfKind, QuarantineReason, RejectReason, SkipReason, Split, TroubleReason

T = TypeVar("T")


class TopicPartition(NamedTuple):
    """`topic` is the store's name of the log. The log that an operator accepted in the place of another is a stream of its
    own, because its offsets begin again: the second log of "examples" is "examples~2". No topic of Kafka's can have a "~"."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


def kafka_topic(topic: str) -> str:
    """What Kafka calls the topic that the store calls so."""
    return topic.partition("~")[0]


class Position(NamedTuple):
    """Where one record stands in the stream. A tuple, like `Record`: hundreds of thousands are built a second."""

    topic: str
    partition: int
    offset: int

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Record(NamedTuple):
    """One record as the broker gave it. `timestamp` is the broker's; None when it gave none, or none up to the year 9999.

    `leader_epoch` is that of the broker that led the partition when the record was written; -1 where nobody says.
    """

    position: Position
    timestamp: datetime | None
    key: bytes | None
    value: bytes | None
    leader_epoch: int = -1


@dataclass_transform(frozen_default=True)
def _cheap(cls: type[T]) -> type[T]:
    """A frozen dataclass to the type checker; at run time one whose fields are simply set, in a third of the time."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


@_cheap
class Example:
    """One labelled record, decoded and valid."""

    position: Position
    id: str
    text: str
    label: str
    occurred_at: datetime
    ingested_at: datetime
    source: str
    split: Split
    subject: str | None = None  # the person it is about, as a keyed hash: what `forget` looks for


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a record is not an example. `detail` names the value and the limit, never the whole text."""

    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not become an example, kept with its bytes."""

    position: Position
    reason: RejectReason
    detail: str
    key: bytes | None
    value: bytes | None
    rejected_at: datetime


@dataclass(frozen=True, slots=True)
class ListedLetter:
    """A dead letter without its bytes."""

    position: Position
    reason: RejectReason
    detail: str
    rejected_at: datetime


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A valid example that is not trusted yet: neither trained on nor judged by, until an operator releases it."""

    example: Example
    reason: QuarantineReason
    detail: str


@dataclass(frozen=True, slots=True)
class Half:
    """One half of an example whose label comes later, by another topic: it waits until a record with the same id completes it.

    A prediction has text, prediction and version, and no label; a label has just that.
    """

    position: Position
    kind: HalfKind
    id: str
    text: str | None
    label: str | None
    prediction: str | None
    version: int | None
    occurred_at: datetime
    ingested_at: datetime
    source: str
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """Offsets [start, stop) of a partition whose records were read and are not kept."""

    topic: str
    partition: int
    start: int
    stop: int
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Tail:
    """The last record below a partition's next offset, to recognise the log by: a recreated topic holds another one there.

    The hashes are of key and value; `timestamp` is the broker's in milliseconds, `leader_epoch` -1 where it says none.
    """

    offset: int
    timestamp: int
    key_hash: str
    value_hash: str
    leader_epoch: int = -1


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a partition is not read, in words for an operator, and where its log begins and the store stands."""

    reason: TroubleReason
    detail: str
    first: int
    next: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets [start, stop) of a partition in which there is nothing for us to read."""

    topic: str
    partition: int
    start: int
    stop: int
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Advance:
    """A partition's next offset moves from `expected` (None: never read before) to `next`; `tail` None keeps the stored one."""

    expected: int | None
    next: int
    tail: Tail | None = None


class Tally(NamedTuple):
    """Of `all` records looked at, so many were not as a check wants them."""

    bad: int
    all: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one store transaction holds: every offset between `expected` and `next` is in exactly one of its lists.

    `tallies` are what checks of the whole stream found in it, by check; they are not stored.
    """

    examples: Sequence[Example]
    dead_letters: Sequence[DeadLetter]
    gaps: Sequence[Gap]
    advances: Mapping[TopicPartition, Advance]
    quarantined: Sequence[Quarantined] = ()
    skips: Sequence[Skip] = ()
    halves: Sequence[Half] = ()
    tallies: Mapping[str, Tally] = field(default_factory=dict)

    def __len__(self) -> int:
        """Records that are kept."""
        return len(self.examples) + len(self.dead_letters) + len(self.quarantined) + len(self.halves)


@dataclass(frozen=True, slots=True)
class Amendment:
    """Records that end elsewhere than they did, in one transaction: each of `positions` lies in the dead letters or in
    quarantine now, and in exactly one of the other lists afterwards. An operator's release, drop or redrive."""

    positions: Sequence[Position]
    examples: Sequence[Example] = ()
    dead_letters: Sequence[DeadLetter] = ()
    quarantined: Sequence[Quarantined] = ()
    skips: Sequence[Skip] = ()
    halves: Sequence[Half] = ()

    def as_batch(self) -> Batch:
        """Where the records end now."""
        return Batch(
            self.examples, self.dead_letters, [], {}, quarantined=self.quarantined, skips=self.skips, halves=self.halves
        )

    def misplaced(self) -> set[Position]:
        """Positions taken out and put nowhere, put somewhere and not taken out, or put in two places: must be none."""
        put = Counter(example.position for example in self.examples)
        put.update(letter.position for letter in self.dead_letters)
        put.update(one.example.position for one in self.quarantined)
        put.update(half.position for half in self.halves)
        for skip in self.skips:
            put.update(Position(skip.topic, skip.partition, offset) for offset in range(skip.start, skip.stop))
        twice = {position for position, count in put.items() if count > 1}
        return put.keys() ^ set(self.positions) | twice


@dataclass(frozen=True, slots=True)
class StoredExample:
    """An example as the learning side reads it back."""

    seq: int
    id: str
    text: str
    label: str
    source: str
    split: Split
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What the store holds now. `last_seq` is 0 when it is empty."""

    examples: int
    by_split: Mapping[str, int]
    by_label: Mapping[str, int]
    dead_letters: int
    dead_letters_by_reason: Mapping[str, int]
    gap_offsets: int
    last_seq: int
    newest_occurred_at: datetime | None
    quarantined: int = 0
    quarantined_by_reason: Mapping[str, int] = field(default_factory=dict)
    skipped_offsets: int = 0
    halves: int = 0
    held_out_by_label: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Where every offset ended, over all partitions: promise 1 as numbers. `lost` and `twice` must be 0."""

    offsets: int  # from each partition's start to its next offset
    examples: int
    dead_letters: int
    gap_offsets: int
    lost: int  # offsets that ended nowhere
    twice: int  # offsets that ended in more than one place
    repeated_ids: int  # examples beyond the first with an id: the producer's doing, not ours
    quarantined: int = 0
    skipped_offsets: int = 0
    halves: int = 0
