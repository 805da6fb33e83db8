import json
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from daemon.config import FieldNames, Splits
from daemon.core.errors import OutcomeUnknownError, SourceError, StaleBatchError
from daemon.core.states import GapReason, QuarantineReason, RejectReason, SkipReason
from daemon.core.stream import Advance, Batch, Gap, Position, Quarantined, Record, Skip, TopicPartition
from daemon.ingest.assemble import assemble, merged
from daemon.ingest.consume import LONGEST_BACKOFF, BatchLimits, Ingest, backoff
from daemon.ingest.cut_letters import KEPT
from daemon.ingest.decode import Decoder
from daemon.ingest.redrive import redriven
from daemon.ingest.tails import tail_of
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import START, ManualClock
from daemon.testing.source import Deliver, Fail, Redeliver, ScriptedSource, Step
from daemon.testing.store import InMemoryStore

TOPIC = "examples"
ZERO, ONE = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
DECODER = Decoder(FieldNames(), frozenset({"yes", "no"}), RecordsPolicy(), Splits(), max_record=10_000)


def record(offset: int, partition: int = 0, *, label: str = "yes") -> Record:
    body = {"id": f"{partition}-{offset}", "text": f"text {offset}", "label": label}
    return Record(Position(TOPIC, partition, offset), START, None, json.dumps(body).encode())


def records(*offsets: int, partition: int = 0) -> list[Record]:
    return [record(offset, partition) for offset in offsets]


def broken(offset: int) -> Record:
    return record(offset)._replace(value=b"\xff")


class Setup:
    """An Ingest over a scripted source and a store in memory."""

    def __init__(self, given: Sequence[Record], *script: Step) -> None:
        self.source = ScriptedSource(given, script=script)
        self.store = InMemoryStore()
        self.metrics = LearnerMetrics()
        self.ingest = self.built()

    def built(self, **settings: Any) -> Ingest:
        return Ingest(
            self.source,
            self.store,
            DECODER,
            clock=ManualClock(),
            metrics=self.metrics,
            rng=random.Random(1),
            **{"poll_timeout": 0.0, **settings},
        )

    def stored_ids(self) -> list[str]:
        return [example.id for example in self.store.window(after=0, up_to=1_000_000, limit=1_000_000)]

    def metric(self, name: str, **labels: Any) -> float | None:
        return self.metrics.registry.get_sample_value(f"relearnd_{name}", labels)


def test_a_batch_holds_examples_dead_letters_and_where_it_ends() -> None:
    assembly = assemble([record(3), broken(4), record(0, partition=1)], {ZERO: 3}, DECODER, START)
    batch = assembly.batch
    assert [example.position.offset for example in batch.examples] == [3, 0]
    assert [(letter.position.offset, letter.reason, letter.value) for letter in batch.dead_letters] == [
        (4, RejectReason.NOT_UTF8, b"\xff")
    ]
    assert batch.advances == {
        ZERO: Advance(3, 5, tail_of(broken(4))),
        ONE: Advance(None, 1, tail_of(record(0, partition=1))),
    }
    assert batch.gaps == []


def test_holes_become_gaps() -> None:
    batch = assemble(records(5, 6, 9), {ZERO: 2}, DECODER, START).batch
    assert batch.gaps == [
        Gap(TOPIC, 0, 2, 5, GapReason.NOT_RETURNED),
        Gap(TOPIC, 0, 7, 9, GapReason.NOT_RETURNED),
    ]
    assert batch.advances == {ZERO: Advance(2, 10, tail_of(record(9)))}


def test_a_partition_never_read_before_starts_where_its_first_record_stands() -> None:
    batch = assemble(records(40, 41), {}, DECODER, START).batch
    assert (batch.gaps, batch.advances) == ([], {ZERO: Advance(None, 42, tail_of(record(41)))})


def test_what_the_store_has_already_is_left_out() -> None:
    assembly = assemble(records(3, 4, 4, 5), {ZERO: 4}, DECODER, START)
    assert [example.position.offset for example in assembly.batch.examples] == [4, 5]
    assert assembly.redelivered == 2


def test_a_batch_of_nothing_new_advances_nothing() -> None:
    assert assemble(records(1, 2), {ZERO: 7, ONE: 3}, DECODER, START).batch == Batch(
        [], [], [], {}, skips=[], halves=[]
    )


def test_a_round_stores_then_reports() -> None:
    setup = Setup([*records(0, 1), broken(2)])
    assert setup.ingest.step() == 3
    assert setup.store.next_offsets() == setup.source.reported == {ZERO: 3}
    assert setup.metric("examples_stored_total") == 2
    assert setup.metric("dead_letters_total", reason="not_utf8") == 1
    assert setup.ingest.lag() == {ZERO: 0}
    assert setup.ingest.step() == 0


def test_redelivered_records_are_stored_once() -> None:
    setup = Setup(records(0, 1, 2, 3), Deliver(most=2), Redeliver(back=2))
    setup.ingest.step()
    setup.ingest.step()
    assert setup.stored_ids() == ["0-0", "0-1", "0-2", "0-3"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_commit_of_unknown_outcome_is_resolved_by_the_store(durable: bool) -> None:
    setup = Setup(records(0, 1, 2))
    setup.store.break_next_commit(durable=durable)
    with pytest.raises(OutcomeUnknownError):
        setup.ingest.step()
    assert setup.source.reported == {}
    assert setup.ingest.step() == (0 if durable else 3)
    assert setup.stored_ids() == ["0-0", "0-1", "0-2"]
    assert setup.metric("commit_unknown_outcomes_total") == 1


def test_a_stale_batch_makes_ingest_ask_the_store_again() -> None:
    setup = Setup(records(0, 1, 2, 3), Deliver(most=2))
    setup.ingest.step()
    other = assemble(records(2), {ZERO: 2}, DECODER, START).batch
    setup.store.commit(other)
    with pytest.raises(StaleBatchError):
        setup.ingest.step()
    assert setup.ingest.step() == 1
    assert setup.stored_ids() == ["0-0", "0-1", "0-2", "0-3"]
    assert setup.metric("stale_batches_total") == 1


def test_what_retention_deleted_becomes_a_gap_before_anything_else_is_read() -> None:
    setup = Setup(records(*range(10)), Deliver(most=2))
    setup.ingest.step()
    setup.source.delete_below(ZERO, 6)
    restarted = setup.built()
    restarted.step()
    assert setup.stored_ids() == [f"0-{offset}" for offset in (0, 1, 6, 7, 8, 9)]
    assert setup.store.counts().gap_offsets == 4
    assert setup.metric("gap_offsets_total", reason="retention") == 4
    assert setup.store.coverage().lost == setup.store.coverage().twice == 0


def test_a_partition_deleted_to_its_end_is_a_gap_at_once() -> None:
    setup = Setup(records(*range(4)), Deliver(most=1))
    setup.ingest.step()
    setup.source.delete_below(ZERO, 4)
    assert setup.built().step() == 0
    assert setup.store.next_offsets() == {ZERO: 4}
    assert setup.store.counts().gap_offsets == 3


def test_the_decoder_may_change_while_running() -> None:
    setup = Setup([record(0), record(1, label="maybe")], Deliver(most=1))
    setup.ingest.step()
    setup.ingest.decoder = replace(DECODER, records=RecordsPolicy(unknown_label="accept"))
    setup.ingest.step()
    assert setup.stored_ids() == ["0-0", "0-1"]


def test_the_loop_waits_longer_after_each_failure_and_then_goes_on() -> None:
    setup = Setup(records(0, 1), Fail("gone"), Fail("still gone"))
    stop = RememberingStop(until=lambda: len(setup.stored_ids()) == 2)
    beats: list[None] = []
    setup.ingest.run(stop, lambda: beats.append(None))
    assert setup.stored_ids() == ["0-0", "0-1"]
    assert len(stop.waited) == 2
    assert 0 < stop.waited[0] < stop.waited[1]
    assert len(beats) == 3
    assert setup.metric("source_errors_total") == 2


def test_failures_in_a_row_are_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000, 10_000, 10))  # each look at the clock is ten seconds later
    monkeypatch.setattr("daemon.ingest.consume.time.monotonic", lambda: float(next(now)))
    setup = Setup(records(0), *[Fail("gone")] * 15)
    with capture_logs() as logs:
        setup.ingest.run(RememberingStop(until=lambda: setup.stored_ids()), lambda: None)
    told = [line["failures"] for line in logs if line["action"] == "ingest_restart"]
    assert told == [1, 7, 13]


def test_what_the_source_went_past_behind_the_records_is_a_gap() -> None:
    passed = {ZERO: (3, 6), ONE: (0, 2)}
    batch = assemble(records(1, 2), {ZERO: 1}, DECODER, START, passed).batch
    assert batch.gaps == [
        Gap(*ZERO, 3, 6, GapReason.NOT_RETURNED),
        Gap(*ONE, 0, 2, GapReason.NOT_RETURNED),
    ]
    assert batch.advances == {ZERO: Advance(1, 6, tail_of(record(2))), ONE: Advance(None, 2)}


def test_what_lies_behind_records_that_did_not_come_is_no_gap() -> None:
    batch = assemble(records(1), {ZERO: 1}, DECODER, START, {ZERO: (3, 6)}).batch
    assert (batch.gaps, batch.advances[ZERO].next) == ([], 2)


def test_large_dead_letters_are_cut_and_not_decoded_again() -> None:
    setup = Setup([broken(0)._replace(value=b"\xff" * 10_000_000), broken(1)])
    setup.ingest.step()
    small, large = setup.store.dead_letters(9)
    assert (len(small.value or b""), len(large.value or b"")) == (1, KEPT)
    beginning = replace(large, value=(record(0).value or b"").ljust(KEPT))  # which by itself would be an example
    assert (
        redriven(
            [beginning], replace(DECODER, max_record=1 << 20), lambda batch: batch, START, lambda positions: ()
        ).amendment.positions
        == []
    )


class RememberingStop(threading.Event):
    """Set once the condition holds; waiting is only written down."""

    def __init__(self, until: Any) -> None:
        super().__init__()
        self._until = until
        self.waited: list[float] = []

    def is_set(self) -> bool:
        return bool(self._until())

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0.0)
        return self.is_set()


def test_a_failed_source_is_started_again_before_it_is_polled() -> None:
    setup = Setup(records(0), Fail("gone"))
    with pytest.raises(SourceError):
        setup.ingest.step()
    assert setup.ingest.step() == 1


def test_backoff_grows_to_its_limit() -> None:
    longest = [max(backoff(failures, random.Random(seed)) for seed in range(50)) for failures in (1, 2, 3, 100)]
    assert longest == sorted(longest)
    assert LONGEST_BACKOFF * 0.9 < longest[-1] <= LONGEST_BACKOFF


def run_rounds(ingest: Ingest, numbers: range, prepare: Callable[[int], None]) -> None:
    """As many rounds as there are numbers, commits overlapping with what is polled next."""
    left = list(numbers)
    ingest.run(RememberingStop(until=lambda: not left), lambda: prepare(left.pop(0)))


def test_partitions_that_are_not_read_are_counted_by_reason_until_they_are_read_again() -> None:
    setup = Setup(records(0, 1))
    run_rounds(setup.ingest, range(2), lambda _: None)
    assert setup.stored_ids() == ["0-0", "0-1"]
    setup.source.recreate(ZERO)
    setup.ingest.restart()
    run_rounds(setup.ingest, range(1), lambda _: None)
    assert setup.metric("partitions_not_read", reason="log_short") == 1
    setup.source.produce(*records(0, 1))
    setup.ingest.restart()
    run_rounds(setup.ingest, range(1), lambda _: None)
    assert setup.metric("partitions_not_read", reason="log_short") is None


steps = st.one_of(
    st.builds(Deliver, most=st.integers(1, 5)), st.builds(Redeliver, back=st.integers(0, 6)), st.just(Fail("gone"))
)


def test_what_is_left_out_is_covered_by_few_ranges() -> None:
    tombstones = [record(offset)._replace(value=None) for offset in (1, 2, 3, 5)]
    setup = Setup(sorted([record(0), *tombstones, record(4)], key=lambda one: one.position.offset))
    setup.ingest.step()
    assert setup.store.counts().skipped_offsets == 4
    assert setup.metric("skipped_offsets_total", reason="tombstone") == 4
    assert (setup.store.coverage().lost, setup.store.coverage().twice) == (0, 0)
    skipped = [Skip(TOPIC, 0, offset, offset + 1, SkipReason.TOMBSTONE) for offset in (5, 2, 1, 3)]
    other = Skip(TOPIC, 0, 6, 7, SkipReason.DUPLICATE)
    assert merged([*skipped, other]) == [
        Skip(TOPIC, 0, 1, 4, SkipReason.TOMBSTONE),
        Skip(TOPIC, 0, 5, 6, SkipReason.TOMBSTONE),
        other,
    ]


class QuarantineAll:
    """A curator that notes who calls it when."""

    def __init__(self, store: InMemoryStore) -> None:
        self.calls: list[str] = []
        self._store = store

    def resume(self, beat: Callable[[], None]) -> None:
        self.calls.append("resume")
        self.beat = beat

    def curate(self, batch: Batch) -> Batch:
        self.calls.append(f"curate {len(batch.examples)}, stored {self._store.counts().quarantined}")
        aside = [Quarantined(example, QuarantineReason.NEW_SOURCE, "test") for example in batch.examples]
        return replace(batch, examples=[], quarantined=aside)

    def kept(self) -> None:
        self.calls.append(f"kept {self._store.counts().quarantined}")


def test_the_curator_sees_each_batch_once_all_before_it_are_stored() -> None:
    setup = Setup(records(0, 1, 2, 3), Deliver(most=2))
    curator = QuarantineAll(setup.store)
    ingest = setup.built(curator=curator)
    beat = lambda: None  # noqa: E731
    ingest.run(RememberingStop(until=lambda: setup.store.counts().quarantined == 4), beat)
    assert curator.beat is beat
    assert curator.calls == [
        "resume",
        "curate 2, stored 0",
        "kept 2",
        "curate 2, stored 2",
        "kept 4",
    ]
    assert setup.metric("quarantined_total", reason="new_source") == 4


def test_after_a_failure_the_curator_begins_again() -> None:
    setup = Setup(records(0, 1))
    curator = QuarantineAll(setup.store)
    ingest = setup.built(curator=curator)
    setup.store.break_next_commit(durable=False)
    with pytest.raises(OutcomeUnknownError):
        ingest.step()
    ingest.step()
    assert curator.calls == ["resume", "curate 2, stored 0", "resume", "curate 2, stored 0", "kept 2"]


class WaitingStore(InMemoryStore):
    """Each commit waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def commit(self, batch: Batch) -> None:
        assert self.let_go.wait(10), "nothing was polled while this batch was committed"
        super().commit(batch)


def test_the_next_batch_is_polled_while_one_is_committed() -> None:
    setup = Setup(records(0, 1, 2), Deliver(most=1), Deliver(most=1))
    setup.store = store = WaitingStore()
    polls: list[float] = []
    poll = setup.source.poll

    def watched(timeout: float) -> Sequence[Record]:
        polls.append(timeout)
        if len(polls) > 1:
            store.let_go.set()
        return poll(timeout)

    setup.source.poll = watched  # type: ignore[method-assign]
    setup.built().run(RememberingStop(until=lambda: len(setup.stored_ids()) == 3), lambda: None)
    assert setup.stored_ids() == ["0-0", "0-1", "0-2"]
    assert setup.source.reported == {ZERO: 3}


def test_what_comes_a_moment_later_is_polled_while_a_batch_is_committed() -> None:
    setup = Setup(records(0, 1), Deliver(most=1))
    setup.store = store = WaitingStore()
    poll = setup.source.poll

    def late(timeout: float) -> Sequence[Record]:
        """There is nothing at once."""
        found = poll(timeout) if timeout else []
        if any(one.position.offset == 1 for one in found):
            store.let_go.set()
        return found

    setup.source.poll = late  # type: ignore[method-assign]
    ingest = setup.built(poll_timeout=0.1, limits=BatchLimits(seconds=0.1))
    ingest.run(RememberingStop(until=lambda: len(setup.stored_ids()) == 2), lambda: None)
    assert setup.stored_ids() == ["0-0", "0-1"]


def test_a_stop_waits_for_the_commit_under_way() -> None:
    setup = Setup(records(0))
    rounds = iter([False, True])
    setup.ingest.run(RememberingStop(until=lambda: next(rounds)), lambda: None)
    assert setup.stored_ids() == ["0-0"]
    assert setup.source.reported == {ZERO: 1}


def test_a_batch_is_closed_by_the_first_limit_it_reaches() -> None:
    def sizes(limits: BatchLimits) -> list[int]:
        setup = Setup(records(*range(12)), *[Deliver(most=2)] * 6)
        ingest = setup.built(limits=limits)
        return [ingest.step() for _ in range(3)]

    length = len(record(0).value or b"")
    assert sizes(BatchLimits(records=4, size=1 << 20, seconds=60)) == [4, 4, 4]
    assert sizes(BatchLimits(records=100, size=3 * length, seconds=60)) == [4, 4, 4]
    assert sizes(BatchLimits(records=100, size=1 << 20, seconds=0)) == [2, 2, 2]


def test_the_store_is_tidied_when_nothing_comes() -> None:
    setup = Setup(records(0))
    quiet: list[int] = []
    setup.store.tidy = lambda: quiet.append(setup.store.counts().examples)  # type: ignore[method-assign]
    setup.ingest.step()
    assert quiet == []
    setup.ingest.step()
    assert quiet == [1]


def test_while_ingest_is_held_nothing_is_read() -> None:
    setup = Setup(records(0))
    holding = [True]
    ingest = setup.built(held=lambda: holding[0])
    assert ingest.step() == 0
    holding[0] = False
    assert ingest.step() == 1


offsets = st.sets(st.integers(0, 40), max_size=30).map(sorted)


@given(
    logs=st.lists(offsets, min_size=1, max_size=3),
    bad=st.sets(st.integers(0, 40)),
    script=st.lists(steps, max_size=12),
    commits=st.lists(st.sampled_from([None, True, False]), max_size=12),
    restarts=st.sets(st.integers(0, 12)),
    overlapping=st.booleans(),
)
def test_whatever_fails_every_offset_ends_exactly_once(
    logs: list[list[int]],
    bad: set[int],
    script: list[Step],
    commits: list[bool | None],
    restarts: set[int],
    overlapping: bool,
) -> None:
    """Holes, redeliveries, failing polls, broken commits and restarts in any order: nothing is lost, nothing is twice."""
    given_records = [
        broken(offset) if partition == 0 and offset in bad else record(offset, partition)
        for partition, offsets in enumerate(logs)
        for offset in offsets
    ]
    setup = Setup(given_records, *script)
    rounds = len(script) + len(commits) + 4

    def prepare(number: int) -> None:
        if number < len(commits) and commits[number] is not None:
            setup.store.break_next_commit(durable=bool(commits[number]))

    number = 0
    while number < rounds:
        if number in restarts:
            setup.ingest = setup.built()
        if overlapping:
            until = min((place for place in restarts if place > number), default=rounds)
            run_rounds(setup.ingest, range(number, until), prepare)
            number = until
        else:
            prepare(number)
            with suppress(SourceError, OutcomeUnknownError):
                setup.ingest.step()
            number += 1
    coverage = setup.store.coverage()
    assert (coverage.lost, coverage.twice) == (0, 0)
    assert coverage.examples + coverage.dead_letters == len(given_records)
    assert setup.store.next_offsets() == {
        TopicPartition(TOPIC, partition): offsets[-1] + 1 for partition, offsets in enumerate(logs) if offsets
    }
