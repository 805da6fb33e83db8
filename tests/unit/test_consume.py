import json
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import FieldNames, Splits
from daemon.core.errors import OutcomeUnknownError, SourceError, StaleBatchError
from daemon.core.states import GapReason, RejectReason
from daemon.core.types import Advance, Batch, Gap, Position, Record, TopicPartition
from daemon.ingest.consume import LONGEST_BACKOFF, Ingest, assemble, backoff
from daemon.ingest.decode import Decoder
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
    return replace(record(offset), value=b"\xff")


class Setup:
    """An Ingest over a scripted source and a store in memory."""

    def __init__(self, given: Sequence[Record], *script: Step) -> None:
        self.source = ScriptedSource(given, script=script)
        self.store = InMemoryStore()
        self.metrics = LearnerMetrics()
        self.ingest = self.built()

    def built(self) -> Ingest:
        return Ingest(
            self.source,
            self.store,
            DECODER,
            clock=ManualClock(),
            metrics=self.metrics,
            rng=random.Random(1),
            poll_timeout=0.0,
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
    assert batch.advances == {ZERO: Advance(3, 5), ONE: Advance(None, 1)}
    assert batch.gaps == []


def test_holes_become_gaps() -> None:
    batch = assemble(records(5, 6, 9), {ZERO: 2}, DECODER, START).batch
    assert batch.gaps == [
        Gap(TOPIC, 0, 2, 5, GapReason.NOT_RETURNED),
        Gap(TOPIC, 0, 7, 9, GapReason.NOT_RETURNED),
    ]
    assert batch.advances == {ZERO: Advance(2, 10)}


def test_a_partition_never_read_before_starts_where_its_first_record_stands() -> None:
    batch = assemble(records(40, 41), {}, DECODER, START).batch
    assert (batch.gaps, batch.advances) == ([], {ZERO: Advance(None, 42)})


def test_what_the_store_has_already_is_left_out() -> None:
    assembly = assemble(records(3, 4, 4, 5), {ZERO: 4}, DECODER, START)
    assert [example.position.offset for example in assembly.batch.examples] == [4, 5]
    assert assembly.redelivered == 2


def test_a_batch_of_nothing_new_advances_nothing() -> None:
    assert assemble(records(1, 2), {ZERO: 7, ONE: 3}, DECODER, START).batch == Batch([], [], [], {})


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


steps = st.one_of(
    st.builds(Deliver, most=st.integers(1, 5)), st.builds(Redeliver, back=st.integers(0, 6)), st.just(Fail("gone"))
)
offsets = st.sets(st.integers(0, 40), max_size=30).map(sorted)


@given(
    logs=st.lists(offsets, min_size=1, max_size=3),
    bad=st.sets(st.integers(0, 40)),
    script=st.lists(steps, max_size=12),
    commits=st.lists(st.sampled_from([None, True, False]), max_size=12),
    restarts=st.sets(st.integers(0, 12)),
)
def test_whatever_fails_every_offset_ends_exactly_once(
    logs: list[list[int]], bad: set[int], script: list[Step], commits: list[bool | None], restarts: set[int]
) -> None:
    """Holes, redeliveries, failing polls, broken commits and restarts in any order: nothing is lost, nothing is twice."""
    given_records = [
        broken(offset) if partition == 0 and offset in bad else record(offset, partition)
        for partition, offsets in enumerate(logs)
        for offset in offsets
    ]
    setup = Setup(given_records, *script)
    for number in range(len(script) + len(commits) + 2):
        if number in restarts:
            setup.ingest = setup.built()
        if number < len(commits) and commits[number] is not None:
            setup.store.break_next_commit(durable=bool(commits[number]))
        try:
            setup.ingest.step()
        except (SourceError, OutcomeUnknownError):
            continue
    coverage = setup.store.coverage()
    assert (coverage.lost, coverage.twice) == (0, 0)
    assert coverage.examples + coverage.dead_letters == len(given_records)
    assert setup.store.next_offsets() == {
        TopicPartition(TOPIC, partition): offsets[-1] + 1 for partition, offsets in enumerate(logs) if offsets
    }
