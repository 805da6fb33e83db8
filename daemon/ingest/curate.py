"""Which of the records that are valid become examples: the policy's `records`, applied to a whole batch at once.

    scrub -> join halves -> unknown label, quality, time, new source -> duplicates and conflicts -> shares

The first that speaks against an example decides. What is remembered of earlier examples comes from the store alone, so a
batch that is read again after a crash is judged as before.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from daemon.config import Splits
from daemon.core.ports import Store
from daemon.core.states import QuarantineReason, RejectReason, SkipReason
from daemon.core.stream import Batch, DeadLetter, Example, Position, Quarantined, Skip, StoredExample, Tally
from daemon.ingest.breaker import NEW_LABELS, Breaker
from daemon.ingest.duplicates import Fingerprints, Numbers, Seen, fingerprints
from daemon.ingest.join import join
from daemon.ingest.quality import Finding, LabelAges, ShareCap, TextRules, times_ahead
from daemon.ingest.scrub import Scrub, scrubber
from daemon.ingest.splits import splitter
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.arrow_examples import ExampleColumns, column
from daemon.runtime.telemetry import LearnerMetrics

CHUNK = 2000  # examples read back at once: 40 MB where each is as long as it may be
LABELS = "records.quality.max_label_share"
MOST_LABELS = 1000  # which the store counts with each batch
DELAYS = 1000  # newest label delays kept for the status

_CONFLICT = {
    "id": "the store has the same id with another label",
    "text": "the store has exactly the same text with another label",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the policy and the config ask for, ready to use. `labels` empty: any is known."""

    records: RecordsPolicy
    labels: frozenset[str]
    scrub: Scrub | None
    texts: TextRules

    @classmethod
    def of(cls, records: RecordsPolicy, labels: Iterable[str]) -> Self:
        return cls(
            records, frozenset(labels), scrubber(records.scrub, records.scrub_patterns), TextRules(records.quality)
        )

    def findings(
        self, examples: Sequence[Example], memory: "Memory", stored_labels: Collection[str]
    ) -> dict[int, Quarantined]:
        """What speaks against an example before it is compared with others, by its place."""
        found: list[Finding] = []
        if self.labels and self.records.unknown_label == "quarantine":
            found += _unknown_labels(examples, self.labels)
        found += _labels_beyond(examples, stored_labels, self.labels)
        if self.texts.any:
            found += self.texts.findings(examples)
        found += times_ahead(examples, self.records.quality.max_ahead)
        if self.records.new_sources == "quarantine":
            found += _new_sources(examples, memory.sources() | set(self.records.trusted_sources))
        return {place: Quarantined(examples[place], reason, detail) for place, reason, detail in reversed(found)}


class Memory:
    """What is remembered of the newest stored examples. A function of them alone, however they came to be known."""

    def __init__(self, records: RecordsPolicy) -> None:
        quality = records.quality
        self.last_seq = 0
        self._near = records.near_duplicates == "skip"
        self.seen = Seen(records.duplicate_window, near=self._near)
        self.source_cap = _cap(records.max_source_share, records.share_window)
        self.label_cap = _cap(quality.max_label_share, records.share_window)
        self.label_ages = LabelAges(records.share_window) if quality.max_new_label_share < 1 else None
        self._last_of_source: dict[str, int] | None = {} if records.new_sources == "quarantine" else None

    @staticmethod
    def kind(records: RecordsPolicy) -> tuple[object, ...]:
        """Two policies of one kind can share a memory."""
        return (
            records.duplicate_window,
            records.near_duplicates,
            records.share_window,
            records.max_source_share,
            records.quality.max_label_share,
            records.quality.max_new_label_share < 1,
            records.new_sources,
        )

    def learn(self, store: Store, beat: Callable[[], None]) -> None:
        """Examples stored since: at the start, after a failure, or because an operator released some. 10 microseconds each."""
        last = store.counts().last_seq
        needed = max((cap.window for cap in (self.source_cap, self.label_cap) if cap), default=0)
        if self.label_ages:
            needed = max(needed, 2 * self.label_ages.window)
        after = max(self.last_seq, min(self.seen.first_needed(last) - 1, max(0, last - needed)))
        for first in range(after, last, CHUNK):
            beat()
            rows = store.window(after=first, up_to=min(first + CHUNK, last), limit=CHUNK)
            seqs = np.fromiter((row.seq for row in rows), np.int64, len(rows))
            self._remember(seqs, rows, self.prints(rows))
        if self.label_ages:
            self.label_ages.told(store.counts().by_label)
        self.last_seq = last

    def add(self, examples: Sequence[Example], prints: Fingerprints) -> None:
        """These were stored next."""
        after, self.last_seq = self.last_seq, self.last_seq + len(examples)
        self._remember(np.arange(after + 1, self.last_seq + 1), examples, prints)

    def prints(self, examples: Sequence[Example | StoredExample]) -> Fingerprints:
        return fingerprints(
            column(examples, "id"),
            column(examples, "text"),
            column(examples, "label"),
            near=self._near,
        )

    def _remember(self, seqs: Numbers, examples: Sequence[Example | StoredExample], prints: Fingerprints) -> None:
        self.seen.add(seqs, prints)
        if self.source_cap:
            self.source_cap.add(column(examples, "source"))
        if self.label_cap:
            self.label_cap.add(column(examples, "label"))
        if self.label_ages:
            self.label_ages.add(column(examples, "label"), seqs.tolist())
        if self._last_of_source is not None:
            self._last_of_source.update(zip(column(examples, "source"), seqs.tolist(), strict=True))

    def sources(self) -> set[str]:
        """Of the examples in which duplicates are looked for."""
        first = self.seen.first_needed(self.last_seq)
        self._last_of_source = {source: seq for source, seq in (self._last_of_source or {}).items() if seq >= first}
        return set(self._last_of_source)


class Curator:
    """Used by the ingest thread; `follow`, `label_delays` and the breaker's are for any thread."""

    def __init__(
        self,
        store: Store,
        records: RecordsPolicy,
        *,
        labels: Iterable[str],
        splits: Splits,
        breaker: Breaker,
        metrics: LearnerMetrics,
    ) -> None:
        self._store = store
        self._labels = frozenset(labels)
        self._split_of = splitter(splits)
        self._breaker = breaker
        self._metrics = metrics
        self._wanted = self._rules = Rules.of(records, self._labels)
        self._memory = Memory(records)
        self._beat: Callable[[], None] = lambda: None
        self._pending: tuple[Sequence[Example], Fingerprints] | None = None
        self._batch: Batch | None = None
        self._delays: Sequence[float] = ()
        self._newest_delays: deque[float] = deque(maxlen=DELAYS)

    def follow(self, records: RecordsPolicy) -> None:
        """The policy as it is now; from the next batch on."""
        if records != self._wanted.records:
            self._wanted = Rules.of(records, self._labels)
        self._breaker.follow(records)

    def resume(self, beat: Callable[[], None] = lambda: None) -> None:
        """Forget what was curated and perhaps not stored; learn what the store holds."""
        self._pending = self._batch = None
        self._beat = beat
        self._memory.learn(self._store, beat)

    def curate(self, batch: Batch) -> Batch:
        """The batch with each record where it belongs: every position that came in goes out once, and the order is kept."""
        self._take_up_policy()
        if self._memory.last_seq != self._store.counts().last_seq:
            self._memory.learn(self._store, self._beat)
        self._delays = ()
        if self._rules.scrub:
            batch = _scrubbed(batch, self._rules.scrub)
        if batch.halves:
            batch = self._joined(batch)
        if self._memory.label_ages:
            batch = replace(
                batch, tallies={**batch.tallies, NEW_LABELS: self._new_labels(batch, self._memory.label_ages)}
            )
        self._batch = self._sorted(batch) if batch.examples else batch
        if not batch.examples:
            self._pending = None
        return self._batch

    def kept(self) -> None:
        """What was curated last is durable."""
        pending, batch, self._pending, self._batch = self._pending, self._batch, None, None
        if pending and self._store.counts().last_seq == self._memory.last_seq + len(pending[0]):
            self._memory.add(*pending)
        for delay in self._delays:
            self._metrics.label_delay.observe(delay)
        self._newest_delays.extend(self._delays)
        if batch:
            skipped = sum(skip.stop - skip.start for skip in batch.skips)
            rejected = len(batch.dead_letters) + len(batch.quarantined)
            self._breaker.noted(len(batch) + skipped, rejected, batch.tallies)
        if self._memory.label_cap:
            self._metrics.check_share.labels(LABELS).set(self._memory.label_cap.largest)

    def label_delays(self) -> Sequence[float]:
        """Seconds from a prediction to its label, of the newest examples that were joined since the start."""
        return sorted(self._newest_delays)

    def _take_up_policy(self) -> None:
        before, self._rules = self._rules, self._wanted
        if Memory.kind(before.records) != Memory.kind(self._rules.records):
            self._memory = Memory(self._rules.records)

    def _joined(self, batch: Batch) -> Batch:
        stored = self._store.halves(list({half.id for half in batch.halves}))
        ambiguity = self._rules.records.conflicts == "quarantine"
        joined = join(batch.halves, stored, self._split_of, ambiguity=ambiguity)
        self._delays = joined.delays
        return replace(
            batch,
            examples=[*batch.examples, *joined.completed],
            quarantined=[*batch.quarantined, *joined.ambiguous],
            halves=joined.waiting,
        )

    def _new_labels(self, batch: Batch, ages: LabelAges) -> Tally:
        """Also of records that are refused for their label."""
        refused = sum(letter.reason is RejectReason.UNKNOWN_LABEL for letter in batch.dead_letters)
        new = ages.new_among(column(batch.examples, "label"), self._labels)
        return Tally(new + refused, len(batch.examples) + refused)

    def _sorted(self, batch: Batch) -> Batch:
        records, memory = self._rules.records, self._memory
        examples = batch.examples
        aside = self._rules.findings(examples, memory, self._store.counts().by_label.keys())
        quarantined = [aside[place] for place in sorted(aside)]
        examples = without(examples, aside)
        prints = memory.prints(examples)
        repeats = memory.seen.repeats(prints, conflicts=records.conflicts == "quarantine")
        if repeats.duplicates or repeats.of_another_label:
            skips = [_skip(examples[place].position) for place in repeats.duplicates]
            quarantined += [
                Quarantined(examples[place], QuarantineReason.LABEL_CONFLICT, _CONFLICT[same])
                for place, same in repeats.of_another_label
            ]
            gone = {*repeats.duplicates, *(place for place, _ in repeats.of_another_label)}
            examples, prints = _both_without(examples, prints, gone)
            batch = replace(batch, skips=[*batch.skips, *skips])
        for cap, of, reason, setting in self._caps():
            over = cap.over(column(examples, of))
            detail = f"it would be more than {cap.most} of {cap.window} examples; {setting} is the limit"
            quarantined += [Quarantined(examples[place], reason, detail) for place in over]
            examples, prints = _both_without(examples, prints, over)
        self._pending = (examples, prints)
        if not quarantined and examples is batch.examples:
            return batch
        return replace(batch, examples=examples, quarantined=[*batch.quarantined, *quarantined])

    def _caps(self) -> Iterable[tuple[ShareCap, str, QuarantineReason, str]]:
        if self._memory.source_cap:
            limit = "records.max_source_share"
            yield self._memory.source_cap, "source", QuarantineReason.SOURCE_SHARE, limit
        if self._memory.label_cap:
            yield self._memory.label_cap, "label", QuarantineReason.QUALITY, LABELS


def without(examples: Sequence[Example], places: Collection[int]) -> Sequence[Example]:
    """The same list where there is nothing to leave out."""
    if not places:
        return examples
    if isinstance(examples, ExampleColumns):
        return examples.without(places)
    return [example for place, example in enumerate(examples) if place not in places]


def _both_without(
    examples: Sequence[Example], prints: Fingerprints, places: Collection[int]
) -> tuple[Sequence[Example], Fingerprints]:
    return (without(examples, set(places)), prints.without(places)) if places else (examples, prints)


def _cap(share: float, window: int) -> ShareCap | None:
    return ShareCap(share, window) if share < 1 else None


def _unknown_labels(examples: Sequence[Example], known: frozenset[str]) -> Iterator[Finding]:
    for place, label in enumerate(column(examples, "label")):
        if label not in known:
            yield place, QuarantineReason.UNKNOWN_LABEL, f"{label!r:.80} is not in task.labels"


def _labels_beyond(examples: Sequence[Example], stored: Collection[str], listed: Collection[str]) -> Iterator[Finding]:
    """Not those that are listed: an operator means them, however many there are."""
    labels = column(examples, "label")
    new = [label for label in dict.fromkeys(labels) if label not in stored and label not in listed]
    beyond = set(new[max(0, MOST_LABELS - len(stored)) :])
    for place, label in enumerate(labels) if beyond else ():
        if label in beyond:
            detail = (
                f"{label!r:.80} would be one more than {MOST_LABELS} labels; list those that are meant in task.labels"
            )
            yield place, QuarantineReason.TOO_MANY_LABELS, detail


def _new_sources(examples: Sequence[Example], known: Collection[str]) -> Iterator[Finding]:
    for place, source in enumerate(column(examples, "source")):
        if source not in known:
            detail = f"{source!r:.80} is a source that the newest examples do not have"
            yield place, QuarantineReason.NEW_SOURCE, detail


def _skip(position: Position) -> Skip:
    topic, partition, offset = position.topic, position.partition, position.offset
    return Skip(topic, partition, offset, offset + 1, SkipReason.DUPLICATE)


def _scrubbed(batch: Batch, scrub: Scrub) -> Batch:
    return replace(
        batch,
        examples=[replace(example, text=scrub(example.text)) for example in batch.examples],
        dead_letters=[_scrubbed_letter(letter, scrub) for letter in batch.dead_letters],
        halves=[half if half.text is None else replace(half, text=scrub(half.text)) for half in batch.halves],
    )


def _scrubbed_letter(letter: DeadLetter, scrub: Scrub) -> DeadLetter:
    """As it is written: what JSON escapes is not recognised. Bytes that are no text stay as they are."""
    key, value = (_scrubbed_bytes(part, scrub) for part in (letter.key, letter.value))
    return replace(letter, key=key, value=value, detail=scrub(letter.detail))


def _scrubbed_bytes(content: bytes | None, scrub: Scrub) -> bytes | None:
    if content is None:
        return None
    try:
        return scrub(content.decode()).encode()
    except UnicodeDecodeError:
        return content
