"""Whole batches through the curator and the store in memory, as ingest does it: resume, then curate, commit and kept in turn."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import FieldNames, Splits
from daemon.core.states import HalfKind, QuarantineReason, RejectReason, SkipReason, Split
from daemon.core.stream import (
    Advance,
    Amendment,
    Batch,
    DeadLetter,
    Example,
    Half,
    Position,
    Record,
    Skip,
    TopicPartition,
)
from daemon.ingest.assemble import assemble
from daemon.ingest.breaker import Breaker
from daemon.ingest.curate import Curator
from daemon.ingest.decode import Decoder
from daemon.ingest.redrive import redriven
from daemon.ingest.splits import splitter
from daemon.policy.schema import QualityPolicy, RecordsPolicy
from daemon.runtime.arrow_examples import ExampleColumns
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import START, ManualClock
from daemon.testing.store import InMemoryStore

TOPIC = TopicPartition("examples", 0)
SPLIT = splitter(Splits())


class Setup:
    def __init__(self, *, store: InMemoryStore | None = None, labels: Iterable[str] = (), **records: Any) -> None:
        self.store = store or InMemoryStore()
        self.metrics = LearnerMetrics()
        policy = RecordsPolicy(**records)
        self.breaker = Breaker(self.store, policy, ManualClock(), self.metrics)
        self.curator = Curator(
            self.store, policy, labels=labels, splits=Splits(), breaker=self.breaker, metrics=self.metrics
        )
        self.curator.resume()

    def take(
        self,
        examples: Sequence[Example] = (),
        *,
        letters: Sequence[DeadLetter] = (),
        halves: Sequence[Half] = (),
    ) -> Batch:
        """One round: what was read is curated and stored."""
        curated = self.curator.curate(self.batch(examples, letters, halves))
        self.store.commit(curated)
        self.curator.kept()
        return curated

    def batch(
        self, examples: Sequence[Example] = (), letters: Sequence[DeadLetter] = (), halves: Sequence[Half] = ()
    ) -> Batch:
        stands = self.store.next_offsets()
        records: list[Example | DeadLetter | Half] = [*examples, *letters, *halves]
        ends: dict[TopicPartition, int] = {}
        for record in records:
            place = record.position.topic_partition
            ends[place] = max(ends.get(place, 0), record.position.offset + 1)
        advances = {place: Advance(stands.get(place), end) for place, end in ends.items()}
        return Batch(examples, letters, [], advances, halves=halves)

    def again(self, **records: Any) -> "Setup":
        """The same store after a restart."""
        return Setup(store=self.store, **records)


def example(offset: int, id: str | None = None, text: str | None = None, label: str = "yes", **more: Any) -> Example:
    id = id or f"id-{offset}"
    fields: dict[str, Any] = {
        "occurred_at": START,
        "ingested_at": START,
        "source": "here",
        "split": SPLIT(id, ""),
    }
    return Example(Position(*TOPIC, offset), id, text or f"text {offset}", label, **{**fields, **more})


def found(batch: Batch) -> list[tuple[int, QuarantineReason]]:
    return [(one.example.position.offset, one.reason) for one in batch.quarantined]


def kept(batch: Batch) -> list[int]:
    return [one.position.offset for one in batch.examples]


def skipped(batch: Batch) -> list[int]:
    return [skip.start for skip in batch.skips]


def test_a_plain_batch_goes_through_untouched() -> None:
    setup = Setup()
    batch = setup.batch([example(0), example(1)])
    assert setup.curator.curate(batch) is batch


def test_a_record_sent_twice_is_skipped_in_one_batch_in_the_next_and_after_a_restart() -> None:
    setup = Setup()
    first = setup.take([example(0, "a", "hello"), example(1, "a", "hello"), example(2)])
    assert (kept(first), first.skips) == ([0, 2], [Skip(*TOPIC, 1, 2, SkipReason.DUPLICATE)])
    assert skipped(setup.take([example(3, "a", "hello")])) == [3]
    assert skipped(setup.again().take([example(4, "a", "hello")])) == [4]
    assert setup.store.coverage().examples == 2
    assert (setup.store.coverage().lost, setup.store.coverage().twice) == (0, 0)


def test_another_label_for_the_same_id_or_text_waits_for_an_operator() -> None:
    setup = Setup()
    setup.take([example(0, "a", "hello", "yes")])
    batch = setup.take([example(1, "a", "other", "no"), example(2, "b", "hello", "no")])
    assert found(batch) == [(1, QuarantineReason.LABEL_CONFLICT), (2, QuarantineReason.LABEL_CONFLICT)]
    assert "id" in batch.quarantined[0].detail
    assert "text" in batch.quarantined[1].detail
    assert kept(setup.again(conflicts="accept").take([example(3, "a", "hello", "no")])) == [3]


def test_the_loop_beats_while_much_is_learnt_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ingest.curate.CHUNK", 2)
    setup = Setup()
    setup.take([example(number) for number in range(5)])
    beats: list[int] = []
    again = setup.again()
    setup.take([example(number) for number in (5, 6, 7)])
    again.curator.resume(lambda: beats.append(1))
    assert len(beats) == 2
    again.curator.follow(RecordsPolicy(duplicate_window=10))
    again.take([example(8)])
    assert len(beats) == 2 + 4, "for another window all is learnt anew"


def test_near_duplicates_go_by_policy_which_may_change_live() -> None:
    setup = Setup()
    setup.take([example(0, text="Buy now!")])
    assert kept(setup.take([example(1, text="buy NOW")])) == [1]
    setup.curator.follow(RecordsPolicy(near_duplicates="skip"))
    assert skipped(setup.take([example(2, text="BUY, now")])) == [2]


def test_a_batch_that_was_not_stored_is_not_remembered() -> None:
    setup = Setup()
    setup.curator.curate(setup.batch([example(0, "a", "hello")]))
    setup.curator.resume()
    assert kept(setup.take([example(0, "a", "hello")])) == [0]
    assert skipped(setup.take([example(1, "a", "hello")])) == [1]


def test_what_an_operator_released_meanwhile_is_known() -> None:
    setup = Setup(labels=["yes"])
    odd = setup.take([example(0, "a", "hello", "odd")]).quarantined[0]
    setup.store.amend(Amendment([odd.example.position], examples=[odd.example]))
    setup.curator.follow(RecordsPolicy(unknown_label="accept"))
    assert skipped(setup.take([example(1, "a", "hello", "odd")])) == [1]


def test_a_release_between_curation_and_commit_loses_no_memory() -> None:
    setup = Setup(labels=["yes"])
    odd = setup.take([example(0, "odd", "odd", "odd")]).quarantined[0]
    curated = setup.curator.curate(setup.batch([example(1, "a", "hello")]))
    setup.store.amend(Amendment([odd.example.position], examples=[odd.example]))
    setup.store.commit(curated)
    setup.curator.kept()
    assert skipped(setup.take([example(2, "a", "hello")])) == [2]


def test_unknown_labels_go_by_policy() -> None:
    assert found(Setup(labels=["yes"]).take([example(0), example(1, label="Yes ")])) == [
        (1, QuarantineReason.UNKNOWN_LABEL)
    ]
    assert kept(Setup(labels=["yes"], unknown_label="accept").take([example(0, label="no")])) == [0]
    assert kept(Setup().take([example(0, label="anything")])) == [0]


def test_a_store_counts_no_more_than_so_many_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ingest.curate.MOST_LABELS", 3)
    setup = Setup()
    setup.take([example(0, label="a"), example(1, label="b")])
    batch = setup.take([example(number, label=label) for number, label in enumerate("caxyxb", 2)])
    assert [one.label for one in batch.examples] == ["c", "a", "b"]
    assert [one.example.label for one in batch.quarantined] == ["x", "y", "x"]
    assert {one.reason for one in batch.quarantined} == {QuarantineReason.TOO_MANY_LABELS}
    assert set(setup.store.counts().by_label) == {"a", "b", "c"}


def test_labels_that_are_listed_are_taken_however_many_the_store_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ingest.curate.MOST_LABELS", 2)
    store = InMemoryStore()
    Setup(store=store).take([example(0, label="a"), example(1, label="b")])
    batch = Setup(store=store, labels=["c", "d"]).take([example(2, label="c"), example(3, label="d")])
    assert [one.label for one in batch.examples] == ["c", "d"]


def test_a_new_source_waits_until_it_is_trusted_or_one_of_its_examples_is_released() -> None:
    setup = Setup(new_sources="quarantine", trusted_sources=["known"])
    first = setup.take([example(0, source="known"), example(1, source="new"), example(2, source="new")])
    assert (kept(first), found(first)) == ([0], [(1, QuarantineReason.NEW_SOURCE), (2, QuarantineReason.NEW_SOURCE)])
    released = first.quarantined[0].example
    setup.store.amend(Amendment([released.position], examples=[released]))
    assert kept(setup.take([example(3, source="new")])) == [3]
    restarted = setup.again(new_sources="quarantine")
    assert kept(restarted.take([example(4, source="new"), example(5, source="known")])) == [4, 5]


def test_a_source_has_at_most_its_share_also_after_a_restart() -> None:
    policy: dict[str, Any] = {"max_source_share": 0.3, "share_window": 10}
    setup = Setup(**policy)
    batch = setup.take([example(n, source="loud") for n in range(4)] + [example(4, source="quiet")])
    assert (kept(batch), found(batch)) == ([0, 1, 2, 4], [(3, QuarantineReason.SOURCE_SHARE)])
    assert found(setup.again(**policy).take([example(5, source="loud")])) == [(5, QuarantineReason.SOURCE_SHARE)]


def test_quality_and_label_balance_keep_aside() -> None:
    quality = QualityPolicy(min_chars=4, max_label_share=0.5)
    setup = Setup(quality=quality, share_window=4)
    batch = setup.take([example(0, text="hey"), *(example(n) for n in (1, 2, 3)), example(4, label="no")])
    assert found(batch) == [(0, QuarantineReason.QUALITY), (3, QuarantineReason.QUALITY)]
    assert "min_chars" in batch.quarantined[0].detail
    assert "max_label_share" in batch.quarantined[1].detail


@pytest.mark.parametrize("kind", [list, ExampleColumns.of])
def test_a_time_ahead_of_the_clock_keeps_aside(kind: Callable[[list[Example]], Sequence[Example]]) -> None:
    future = START + timedelta(days=2)
    labels, quality = ["yes", "no"], QualityPolicy(min_chars=4)
    setup = Setup(labels=labels, quality=quality)
    examples = [
        example(0, "a", "said in the future", occurred_at=future),
        example(1, label="odd", occurred_at=future),
        example(2, text="hey", occurred_at=future),
        example(3, "a", "said today", "no"),
        example(4, occurred_at=START + timedelta(hours=23)),
    ]
    batch = setup.take(kind(examples))
    assert found(batch) == [
        (0, QuarantineReason.FUTURE_TIME),
        (1, QuarantineReason.UNKNOWN_LABEL),
        (2, QuarantineReason.QUALITY),
    ]
    assert kept(batch) == [3, 4], "what is kept aside speaks against nobody"
    assert batch.quarantined[0].example == examples[0]
    assert setup.store.counts().newest_occurred_at == START + timedelta(hours=23)
    longer = setup.again(labels=labels, quality=QualityPolicy(max_ahead="2d"))
    assert kept(longer.take(kind([example(5, occurred_at=future)]))) == [5]


def test_an_example_joined_from_halves_is_held_against_the_clock_too() -> None:
    setup = Setup()
    asked = half(0, HalfKind.PREDICTION, "a", "hello", minutes=3 * 24 * 60)
    setup.take(halves=[replace(asked, ingested_at=START)])
    batch = setup.take(halves=[half(0, HalfKind.LABEL, "a", "yes", minutes=5)])
    assert found(batch) == [(0, QuarantineReason.FUTURE_TIME)]
    assert (setup.store.coverage().lost, setup.store.coverage().twice) == (0, 0)


def test_a_dead_letter_that_is_read_again_is_held_against_the_clock_of_then() -> None:
    decoder = Decoder(FieldNames(), frozenset(), RecordsPolicy(), Splits(), max_record=1000)
    value = b'{"id": "a", "text": "hello", "label": "yes", "occurred_at": "2026-01-08T09:00:00Z"}'
    letter = DeadLetter(Position(*TOPIC, 0), RejectReason.UNKNOWN_LABEL, "", None, value, START)
    setup = Setup()
    setup.take(letters=[letter])
    early, late = (
        redriven([letter], decoder, setup.curator.curate, START + timedelta(days=days), lambda positions: ()).amendment
        for days in (1, 3)
    )
    assert [one.reason for one in early.quarantined] == [QuarantineReason.FUTURE_TIME]
    assert [one.id for one in late.examples] == ["a"]


def test_what_nobody_named_is_refused_until_an_operator_names_it_and_redrives() -> None:
    strict = RecordsPolicy(new_sources="dead_letter", trusted_sources=["shop"])
    named = strict.model_copy(update={"trusted_sources": ["shop", "kiosk"]})
    bodies = [{"id": str(n), "text": f"text {n}", "label": "yes", "source": s} for n, s in enumerate(["shop", "kiosk"])]
    records = [Record(Position(*TOPIC, n), START, None, json.dumps(body).encode()) for n, body in enumerate(bodies)]

    def decoder(policy: RecordsPolicy) -> Decoder:
        return Decoder(FieldNames(), frozenset(), policy, Splits(), max_record=1000)

    setup = Setup(**dict(strict))
    setup.store.commit(setup.curator.curate(assemble(records, {}, decoder(strict), START).batch))
    (letter,) = setup.store.dead_letters(9)
    assert (letter.position.offset, letter.reason) == (1, RejectReason.UNKNOWN_SOURCE)

    assert (
        redriven([letter], decoder(strict), setup.curator.curate, START, lambda positions: ()).amendment.positions == []
    )
    again = setup.again(**dict(named))
    setup.store.amend(redriven([letter], decoder(named), again.curator.curate, START, lambda positions: ()).amendment)
    assert [one.source for one in setup.store.window(after=0, up_to=9, limit=9)] == ["shop", "kiosk"]
    assert (setup.store.coverage().lost, setup.store.coverage().twice, setup.store.coverage().dead_letters) == (0, 0, 0)


def test_what_is_kept_aside_speaks_against_nobody() -> None:
    setup = Setup(labels=["yes", "no"], quality=QualityPolicy(min_chars=4))
    setup.take([example(0, "a", "abc", "yes")])
    assert kept(setup.take([example(1, "a", "abcd", "no")])) == [1]


def test_texts_are_scrubbed_before_anything_is_stored_or_compared() -> None:
    setup = Setup(scrub=["email"])
    letter = DeadLetter(
        Position(*TOPIC, 2),
        RejectReason.BAD_TIME,
        "'a@example.com'",
        b"b@example.com",
        b'{"x": "c@example.com"}',
        START,
    )
    batch = setup.take([example(0, "1", "ask a@example.com"), example(1, "1", "ask b@example.com")], letters=[letter])
    assert [one.text for one in batch.examples] == ["ask <email>"]
    assert skipped(batch) == [1]
    (kept_letter,) = batch.dead_letters
    assert (kept_letter.detail, kept_letter.key, kept_letter.value) == ("'<email>'", b"<email>", b'{"x": "<email>"}')


def test_bytes_that_are_no_text_cannot_be_scrubbed_and_stay() -> None:
    letter = DeadLetter(Position(*TOPIC, 0), RejectReason.NOT_UTF8, "", None, b"a@example.com\xff", START)
    assert Setup(scrub=["email"]).take(letters=[letter]).dead_letters == [letter]


def half(offset: int, kind: HalfKind, id: str, said: str, minutes: int = 0) -> Half:
    at = START + timedelta(minutes=minutes)
    is_label = kind == HalfKind.LABEL
    text, label = (None, said) if is_label else (said, None)
    return Half(Position(kind.value, 0, offset), kind, id, text, label, None, None, at, at, "somebody")


def test_halves_meet_across_batches_and_restarts_and_their_example_is_curated_like_any() -> None:
    setup = Setup(labels=["yes"], scrub=["email"])
    first = setup.take(halves=[half(0, HalfKind.PREDICTION, "a", "write to x@example.com")])
    assert (len(first.halves), kept(first)) == (1, [])
    second = setup.again(labels=["yes"]).take(halves=[half(0, HalfKind.LABEL, "a", "yes", minutes=2)])
    assert [(e.text, e.label, e.position.topic) for e in second.examples] == [("write to <email>", "yes", "label")]
    third = setup.again(labels=["yes"])
    batch = third.take(halves=[half(1, HalfKind.LABEL, "a", "yes"), half(2, HalfKind.LABEL, "a", "odd")])
    assert skipped(batch) == [1]
    assert found(batch) == [(2, QuarantineReason.UNKNOWN_LABEL)]
    assert (setup.store.coverage().lost, setup.store.coverage().twice) == (0, 0)


def test_label_delays_are_measured_when_the_example_is_stored() -> None:
    setup = Setup()
    setup.take(halves=[half(0, HalfKind.PREDICTION, "a", "hello")])
    setup.curator.curate(setup.batch(halves=[half(0, HalfKind.LABEL, "a", "yes", minutes=2)]))
    assert setup.curator.label_delays() == []
    setup.curator.resume()
    setup.take(halves=[half(0, HalfKind.LABEL, "a", "yes", minutes=2)])
    assert setup.curator.label_delays() == [120.0]
    assert setup.metrics.registry.get_sample_value("relearnd_label_delay_seconds_sum") == 120.0


def test_the_breaker_counts_what_was_stored() -> None:
    setup = Setup(labels=["yes"], reject_window=4)
    setup.take([example(0), example(1, label="odd"), example(2, label="odd")])
    assert not setup.breaker.held()
    setup.curator.curate(setup.batch([example(3, label="odd")]))
    assert not setup.breaker.held()
    setup.take([example(3, label="odd")])
    assert setup.breaker.held()


few = st.sampled_from(["a", "b", "c"])
streams = st.lists(st.tuples(few, few, st.sampled_from(["yes", "no", "odd"]), few), max_size=30)
policies = st.builds(
    RecordsPolicy,
    near_duplicates=st.sampled_from(["accept", "skip"]),
    conflicts=st.sampled_from(["quarantine", "accept"]),
    duplicate_window=st.integers(1, 6),
    max_source_share=st.sampled_from([0.4, 1.0]),
    share_window=st.just(5),
    new_sources=st.just("quarantine"),
    trusted_sources=st.just(["a", "b"]),
    max_reject_share=st.just(1.0),
)


@given(streams, policies, st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_every_record_ends_once_and_crashes_change_nothing(
    rows: list[tuple[str, str, str, str]], policy: RecordsPolicy, crashes: list[int], lost: bool
) -> None:
    """One record a batch; a crash before or after a commit, and a new process, leave the same store as no crash at all."""
    stream = [example(n, i, t, label, source=source) for n, (i, t, label, source) in enumerate(rows)]

    def ends(crash_at: Sequence[int]) -> tuple[Any, ...]:
        setup = Setup(labels=["yes", "no"], **dict(policy))
        for place, one in enumerate(stream):
            if place in crash_at:
                curated = setup.curator.curate(setup.batch([one]))
                if not lost:
                    setup.store.commit(curated)
                setup = setup.again(labels=["yes", "no"], **dict(policy))
            if setup.store.next_offsets().get(TOPIC, 0) <= place:
                setup.take([one])
        coverage = setup.store.coverage()
        assert (coverage.offsets, coverage.lost, coverage.twice) == (len(stream), 0, 0)
        stored = setup.store.window(after=0, up_to=1000, limit=1000)
        return coverage, [(row.seq, row.id, row.text, row.label) for row in stored], setup.store.quarantined(1000)

    assert ends(crashes) == ends([])


@given(streams)
def test_an_id_has_one_split_whatever_comes(rows: list[tuple[str, str, str, str]]) -> None:
    setup = Setup()
    setup.take([example(n, i, t, label) for n, (i, t, label, _) in enumerate(rows)])
    stored = setup.store.window(after=0, up_to=1000, limit=1000)
    assert all(len(splits) == 1 for splits in _splits_by("id", stored).values())


def _splits_by(field: str, stored: Iterable[Any]) -> dict[str, set[Split]]:
    found: dict[str, set[Split]] = {}
    for row in stored:
        found.setdefault(getattr(row, field), set()).add(row.split)
    return found


def test_quarantined_records_keep_their_order_and_content() -> None:
    odd = [example(n, label="odd") for n in range(3)]
    batch = Setup(labels=["yes"]).take(odd)
    assert [one.example for one in batch.quarantined] == odd
    assert Counter(one.detail for one in batch.quarantined) == {"'odd' is not in task.labels": 3}
