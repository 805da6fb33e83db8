"""What every Store promises, asked of the one in memory and of the one on DuckDB."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.core.errors import NotFoundError, OutcomeUnknownError, StaleBatchError
from daemon.core.ports import Store
from daemon.core.states import (
    Action,
    GapReason,
    HalfKind,
    Outcome,
    QuarantineReason,
    RejectReason,
    RunState,
    SkipReason,
    Split,
    TriggerKind,
)
from daemon.core.stream import (
    Advance,
    Amendment,
    Batch,
    Coverage,
    DeadLetter,
    Example,
    Gap,
    Half,
    Position,
    Quarantined,
    Skip,
    Tail,
    TopicPartition,
)
from daemon.core.types import Decision, GateResult, Run, StoredDecision, Trigger, Verdict
from daemon.store import sampling
from daemon.store.duckdb_store import DuckdbStore
from daemon.testing.clock import START
from daemon.testing.store import InMemoryStore
from tests.stores import break_next

TOPIC = "examples"
ZERO, ONE = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
LABELS = ("negative", "neutral", "positive")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.HOLDOUT)

BreakNextCommit = Callable[[bool], None]


def duckdb_store(folder: Path) -> DuckdbStore:
    return DuckdbStore.open(folder / "store.duckdb", memory_limit=1 << 28, threads=1)


@pytest.fixture(params=["memory", "duckdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = InMemoryStore() if request.param == "memory" else duckdb_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def break_next_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> BreakNextCommit:
    """Make the next COMMIT raise, after or before it became durable."""
    if isinstance(store, InMemoryStore):
        return lambda durable: store.break_next_commit(durable=durable)
    return lambda durable: break_next(monkeypatch, "_commit", durable=durable)


def example(offset: int, partition: int = 0, **changes: Any) -> Example:
    plain = Example(
        position=Position(TOPIC, partition, offset),
        id=f"{partition}-{offset}",
        text=f"text {offset}",
        label=LABELS[offset % 3],
        occurred_at=START + timedelta(seconds=offset),
        ingested_at=START + timedelta(days=1),
        source="airline",
        split=SPLITS[offset % 5],
    )
    return replace(plain, **changes)


def dead_letter(offset: int, **changes: Any) -> DeadLetter:
    plain = DeadLetter(Position(TOPIC, 0, offset), RejectReason.NOT_JSON, "no JSON", b"key", b"value", START)
    return replace(plain, **changes)


def held(offset: int, **changes: Any) -> Quarantined:
    plain = Quarantined(example(offset), QuarantineReason.UNKNOWN_LABEL, "no such label")
    return replace(plain, **changes)


def half(offset: int, kind: HalfKind = HalfKind.LABEL) -> Half:
    is_label = kind == HalfKind.LABEL
    return Half(
        position=Position(TOPIC, 0, offset),
        kind=kind,
        id=str(offset),
        text=None if is_label else "text",
        label="yes" if is_label else None,
        prediction=None if is_label else "no",
        version=None if is_label else 3,
        occurred_at=START,
        ingested_at=START,
        source="labels",
    )


def batch(*examples: Example, expected: int | None = None) -> Batch:
    """Examples of partition 0 in a row."""
    return Batch(examples, [], [], {ZERO: Advance(expected, examples[-1].position.offset + 1)})


def filled(store: Store, count: int = 60) -> Store:
    store.commit(batch(*(example(offset) for offset in range(count))))
    return store


# --- the stream ---------------------------------------------------------------------------------------------------


def test_an_empty_store_stands_nowhere(store: Store) -> None:
    assert store.next_offsets() == {}
    assert (store.counts().examples, store.counts().last_seq, store.counts().newest_occurred_at) == (0, 0, None)
    assert store.coverage() == Coverage(0, 0, 0, 0, 0, 0, 0)


def test_a_batch_and_its_offsets_are_stored_together(store: Store) -> None:
    store.commit(
        Batch(
            [example(5), example(8), example(0, partition=1)],
            [dead_letter(6), dead_letter(7, reason=RejectReason.NO_VALUE)],
            [Gap(TOPIC, 1, 1, 4, GapReason.NOT_RETURNED)],
            {ZERO: Advance(None, 9), ONE: Advance(None, 4)},
        )
    )
    assert store.next_offsets() == {ZERO: 9, ONE: 4}
    counts = store.counts()
    assert (counts.examples, counts.last_seq, counts.gap_offsets) == (3, 3, 3)
    assert counts.by_split == {"train": 2, "validation": 1}
    assert counts.by_label == {"positive": 2, "negative": 1}
    assert counts.dead_letters_by_reason == {"not_json": 1, "no_value": 1}
    assert counts.newest_occurred_at == START + timedelta(seconds=8)
    assert store.coverage() == Coverage(8, 3, 2, 3, lost=0, twice=0, repeated_ids=0)


@pytest.mark.parametrize("expected", [None, 1, 3])
def test_a_batch_made_for_another_place_leaves_nothing_behind(store: Store, expected: int | None) -> None:
    store.commit(batch(example(0), example(1)))
    stale = Batch([example(2), example(0, partition=1)], [], [], {ONE: Advance(None, 1), ZERO: Advance(expected, 3)})
    with pytest.raises(StaleBatchError):
        store.commit(stale)
    assert store.next_offsets() == {ZERO: 2}
    assert (store.counts().examples, len(store.window(after=0, up_to=9, limit=9))) == (2, 2)


def test_a_partition_never_read_cannot_be_expected_anywhere(store: Store) -> None:
    with pytest.raises(StaleBatchError):
        store.commit(batch(example(0), expected=0))
    assert store.next_offsets() == {}


@pytest.mark.parametrize("durable", [True, False])
def test_after_an_unknown_outcome_the_store_says_what_became_of_it(
    store: Store, break_next_commit: BreakNextCommit, durable: bool
) -> None:
    store.commit(batch(example(0)))
    break_next_commit(durable)
    with pytest.raises(OutcomeUnknownError):
        store.commit(batch(example(1), expected=1))
    assert store.next_offsets() == {ZERO: 2 if durable else 1}
    if not durable:
        store.commit(batch(example(1), expected=1))
    store.commit(batch(example(2), expected=2))
    assert [stored.seq for stored in store.window(after=0, up_to=9, limit=9)] == [1, 2, 3]
    assert store.counts().examples == store.counts().last_seq == 3
    assert (store.coverage().lost, store.coverage().twice) == (0, 0)


def test_every_kind_of_ending_is_stored_counted_and_covered(store: Store) -> None:
    tail = Tail(8, 1_700_000_000_000, "key hash", "value hash", leader_epoch=4)
    store.commit(
        Batch(
            [example(0)],
            [dead_letter(1)],
            [Gap(TOPIC, 0, 2, 4, GapReason.RETENTION)],
            {ZERO: Advance(None, 10, tail)},
            quarantined=[held(4), held(5, reason=QuarantineReason.NEW_SOURCE)],
            skips=[Skip(TOPIC, 0, 6, 8, SkipReason.DUPLICATE)],
            halves=[half(8), half(9, HalfKind.PREDICTION)],
        )
    )
    counts = store.counts()
    assert (counts.examples, counts.dead_letters, counts.gap_offsets) == (1, 1, 2)
    assert (counts.quarantined, counts.skipped_offsets, counts.halves) == (2, 2, 2)
    assert counts.quarantined_by_reason == {"unknown_label": 1, "new_source": 1}
    assert store.coverage() == Coverage(
        10, 1, 1, 2, lost=0, twice=0, repeated_ids=0, quarantined=2, skipped_offsets=2, halves=2
    )
    assert list(store.quarantined(1)) == [held(5, reason=QuarantineReason.NEW_SOURCE)]
    assert store.tails() == {ZERO: tail}


def test_halves_come_back_by_their_ids_in_the_order_stored(store: Store) -> None:
    halves = [half(0), half(1, HalfKind.PREDICTION), replace(half(2), id="0", subject="hash"), half(3)]
    store.commit(Batch([], [], [], {ZERO: Advance(None, 4)}, halves=halves))
    assert list(store.halves(["3", "0", "nobody's"])) == [halves[0], halves[2], halves[3]]
    assert list(store.halves([])) == []


def test_what_is_held_out_is_counted_by_label(store: Store) -> None:
    held_out = [example(n, split=Split.HOLDOUT, label=label) for n, label in enumerate(["a", "b", "a"])]
    trained_on = example(3, split=Split.TRAIN, label="c")
    store.commit(Batch([*held_out, trained_on], [], [], {ZERO: Advance(None, 4)}))
    assert store.counts().held_out_by_label == {"a": 2, "b": 1}


def test_a_tail_stays_until_another_is_known(store: Store) -> None:
    first, second = Tail(0, 1, "a", "b"), Tail(2, 3, "c", "d", leader_epoch=7)
    assert store.tails() == {}
    store.commit(Batch([example(0)], [], [], {ZERO: Advance(None, 1, first)}))
    store.commit(batch(example(1), expected=1))
    assert store.tails() == {ZERO: first}
    store.commit(Batch([example(2)], [], [], {ZERO: Advance(2, 3, second)}))
    assert store.tails() == {ZERO: second}


def with_records_to_amend(store: Store) -> Store:
    letters = [dead_letter(0), dead_letter(1)]
    store.commit(Batch([], letters, [], {ZERO: Advance(None, 5)}, quarantined=[held(2), held(3), held(4)]))
    return store


def test_an_amendment_moves_records_to_where_they_end_now(store: Store) -> None:
    with_records_to_amend(store).amend(
        Amendment(
            [Position(TOPIC, 0, offset) for offset in (0, 2, 3)],
            examples=[example(2)],
            dead_letters=[dead_letter(0, detail="still no JSON")],
            skips=[Skip(TOPIC, 0, 3, 4, SkipReason.DROPPED)],
        )
    )
    counts = store.counts()
    assert (counts.examples, counts.dead_letters, counts.quarantined, counts.skipped_offsets) == (1, 2, 1, 1)
    assert counts.last_seq == 1
    assert [letter.detail for letter in store.dead_letters(9)] == ["still no JSON", "no JSON"]
    assert list(store.quarantined(9)) == [held(4)]
    assert [stored.id for stored in store.window(after=0, up_to=9, limit=9)] == ["0-2"]
    assert (store.coverage().offsets, store.coverage().lost, store.coverage().twice) == (5, 0, 0)
    assert store.next_offsets() == {ZERO: 5}


def test_what_is_no_longer_there_cannot_be_amended(store: Store) -> None:
    with_records_to_amend(store)
    release = Amendment([Position(TOPIC, 0, 2)], examples=[example(2)])
    store.amend(release)
    again = Amendment([Position(TOPIC, 0, 2), Position(TOPIC, 0, 4)], examples=[example(2), example(4)])
    with pytest.raises(StaleBatchError, match="1 of 2"):
        store.amend(again)
    assert (store.counts().examples, store.counts().quarantined, store.coverage().twice) == (1, 2, 0)


@pytest.mark.parametrize(
    "amendment",
    [
        Amendment([Position(TOPIC, 0, 2)]),
        Amendment([Position(TOPIC, 0, 2)], examples=[example(2), example(3)]),
        Amendment([Position(TOPIC, 0, 2)], examples=[example(2)], skips=[Skip(TOPIC, 0, 2, 3, SkipReason.DROPPED)]),
    ],
)
def test_an_amendment_that_would_lose_or_double_a_record_is_refused(store: Store, amendment: Amendment) -> None:
    with pytest.raises(ValueError, match=r"examples\[0\]@"):
        with_records_to_amend(store).amend(amendment)
    assert (store.counts().examples, store.counts().quarantined) == (0, 3)


@pytest.mark.parametrize("durable", [True, False])
def test_an_amendment_of_unknown_outcome_is_done_or_not(
    store: Store, break_next_commit: BreakNextCommit, durable: bool
) -> None:
    with_records_to_amend(store)
    break_next_commit(durable)
    with pytest.raises(OutcomeUnknownError):
        store.amend(Amendment([Position(TOPIC, 0, 2)], examples=[example(2)]))
    assert (store.counts().examples, store.counts().quarantined) == ((1, 2) if durable else (0, 3))
    assert (store.coverage().lost, store.coverage().twice) == (0, 0)


offsets = st.lists(st.integers(0, 12), max_size=4)
ranges = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(offsets, offsets, offsets, offsets), st.tuples(ranges, ranges), st.integers(0, 14))
def test_both_stores_agree_about_coverage_whatever_they_were_given(
    tmp_path_factory: pytest.TempPathFactory,
    points: tuple[list[int], ...],
    spans: tuple[list[tuple[int, int]], ...],
    reached: int,
) -> None:
    """Also when batches are wrong: then both find the same offsets lost and twice."""
    examples, letters, quarantined, halves = points
    gaps, skips = spans
    wrong = Batch(
        [example(offset) for offset in examples],
        [dead_letter(offset) for offset in letters],
        [Gap(TOPIC, 0, start, start + length, GapReason.RETENTION) for start, length in gaps],
        {ZERO: Advance(0, reached)},
        quarantined=[held(offset) for offset in quarantined],
        skips=[Skip(TOPIC, 0, start, start + length, SkipReason.DUPLICATE) for start, length in skips],
        halves=[half(offset) for offset in halves],
    )
    on_disk = duckdb_store(tmp_path_factory.mktemp("store"))
    answers = []
    for store in (InMemoryStore(), on_disk):
        store.commit(Batch([], [], [], {ZERO: Advance(None, 0)}))
        store.commit(wrong)
        answers.append((store.coverage(), store.counts()))
    on_disk.close()
    assert answers[0] == answers[1]


def test_coverage_finds_what_is_lost_and_what_is_twice(store: Store) -> None:
    store.commit(Batch([example(0), example(1), example(1)], [], [], {ZERO: Advance(None, 3)}))
    store.commit(Batch([example(4, id="0-0")], [dead_letter(4)], [], {ZERO: Advance(3, 6)}))
    assert store.coverage() == Coverage(6, 4, 1, 0, lost=3, twice=2, repeated_ids=2)


def test_texts_times_and_bytes_come_back_as_they_went_in(store: Store) -> None:
    awkward = example(
        0,
        id="ü\u0000",
        text="a\u0000b 🤖 \u202e e\u0301" + "\u0301" * 50,
        label="ja'); drop table examples; --",
        occurred_at=datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9))),
    )
    letters = [dead_letter(1, value=None, key=None), dead_letter(2, value=bytes(range(256)), detail="half \\ud800")]
    store.commit(Batch([awkward], letters, [], {ZERO: Advance(None, 3)}))
    (stored,) = store.window(after=0, up_to=1, limit=1)
    assert (stored.id, stored.text, stored.label) == (awkward.id, awkward.text, awkward.label)
    assert stored.occurred_at == awkward.occurred_at
    assert store.counts().newest_occurred_at == awkward.occurred_at
    assert list(store.dead_letters(10)) == letters[::-1]


def test_the_newest_dead_letters_come_first(store: Store) -> None:
    store.commit(Batch([], [dead_letter(0), dead_letter(1)], [], {ZERO: Advance(None, 2)}))
    store.commit(Batch([], [dead_letter(2, rejected_at=START - timedelta(days=1))], [], {ZERO: Advance(2, 3)}))
    assert [letter.position.offset for letter in store.dead_letters(2)] == [2, 1]


def test_reading_goes_on_while_batches_are_committed(store: Store) -> None:
    """A reader never sees half a batch, whichever thread it is on."""
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(store.examples_after(0))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(20):
        first = number * 10
        store.commit(batch(*(example(first + place) for place in range(10)), expected=first or None))
    done.set()
    for reader in readers:
        reader.join()
    assert {count % 10 for count in seen} == {0}
    assert store.examples_after(0) == 200


# --- what a cycle reads -------------------------------------------------------------------------------------------


def test_a_window_is_the_newest_of_a_range_in_order(store: Store) -> None:
    filled(store)
    assert [stored.seq for stored in store.window(after=10, up_to=20, limit=3)] == [18, 19, 20]
    assert [stored.seq for stored in store.window(after=58, up_to=100, limit=10)] == [59, 60]
    assert [stored.seq for stored in store.window(after=0, up_to=20, limit=2, split=Split.HOLDOUT)] == [15, 20]
    assert store.window(after=60, up_to=100, limit=10) == []


def test_examples_after_counts_what_came_later(store: Store) -> None:
    filled(store)
    assert (store.examples_after(0), store.examples_after(55), store.examples_after(60)) == (60, 5, 0)
    assert store.examples_after(50, split=Split.TRAIN) == 6


BOUNDS: dict[str, Any] = {
    "data_cut": 55,
    "recent_after": 30,
    "train_limit": 10,
    "replay_limit": 9,
    "holdout_limit": 3,
    "seed": 7,
    "run_id": "run-1",
}


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def seqs(folder: Path, name: str) -> list[int]:
    return [row["seq"] for row in rows(folder, name)]


def test_a_snapshot_holds_what_a_run_may_see(store: Store, tmp_path: Path) -> None:
    manifest = filled(store).snapshot(tmp_path, **BOUNDS)
    train = [seq for seq in range(31, 56) if SPLITS[(seq - 1) % 5] == Split.TRAIN]
    assert seqs(tmp_path, "train") == train[-10:]
    assert seqs(tmp_path, "validation") == [44, 49, 54]
    holdout = seqs(tmp_path, "holdout")
    assert holdout[3:] == [45, 50, 55]
    assert all(seq <= 30 and seq % 5 == 0 for seq in holdout[:3])
    assert [row["recent"] for row in rows(tmp_path, "holdout")] == [False] * 3 + [True] * 3
    assert manifest.rows == {"train.parquet": 10, "replay.parquet": 9, "validation.parquet": 3, "holdout.parquet": 6}
    assert manifest.data_cut == 55
    assert manifest.newest_occurred_at == START + timedelta(seconds=train[-1] - 1)


def test_replay_is_drawn_evenly_over_labels_from_the_past(store: Store, tmp_path: Path) -> None:
    rare = [example(60, label="rare", split=Split.TRAIN), example(61, label="rare", split=Split.TRAIN)]
    filled(store).commit(batch(*rare, expected=60))
    store.snapshot(tmp_path, **{**BOUNDS, "data_cut": 62, "recent_after": 62, "replay_limit": 11})
    drawn = [row["label"] for row in rows(tmp_path, "replay")]
    assert {label: drawn.count(label) for label in (*LABELS, "rare")} == {
        "negative": 3,
        "neutral": 3,
        "positive": 3,
        "rare": 2,
    }
    assert seqs(tmp_path, "replay") == sorted(seqs(tmp_path, "replay"))
    assert not any(row["recent"] for row in rows(tmp_path, "replay"))


def test_a_window_reaches_back_as_far_as_it_must(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holdout examples that lie far back are found, although the newest blocks have none."""
    monkeypatch.setattr(sampling, "BLOCK", 2)
    store.commit(batch(*(example(n, split=Split.HOLDOUT if n < 3 else Split.TRAIN) for n in range(300))))
    found = store.window(after=0, up_to=300, limit=2, split=Split.HOLDOUT)
    assert [stored.seq for stored in found] == [2, 3]


DAY = timedelta(days=1)


def late(offset: int, by: timedelta, **changes: Any) -> Example:
    """Ingested so long after it occurred."""
    return example(offset, occurred_at=START, ingested_at=START + by, **changes)


def test_a_window_may_leave_out_what_came_late_and_nothing_else_does(store: Store) -> None:
    delays = [DAY, DAY + timedelta(microseconds=1), -DAY, 400 * DAY, timedelta(), 3 * DAY]
    store.commit(batch(*(late(place, by) for place, by in enumerate(delays))))
    bounds: dict[str, Any] = {"after": 0, "up_to": 6}
    assert [one.seq for one in store.window(**bounds, limit=9, max_lateness=DAY)] == [1, 3, 5]
    assert [one.seq for one in store.window(**bounds, limit=9)] == [1, 2, 3, 4, 5, 6]
    assert [one.seq for one in store.window(**bounds, limit=9, max_lateness=2 * DAY, split=Split.TRAIN)] == [1, 2, 3]
    assert store.late_examples(**bounds, max_lateness=DAY) == 3
    assert store.late_examples(after=1, up_to=5, max_lateness=2 * DAY) == 1
    assert (store.examples_after(0), store.counts().examples) == (6, 6)


def test_a_window_reaches_back_beyond_what_came_late(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit gives that many which came in time, however many late ones lie between."""
    monkeypatch.setattr(sampling, "BLOCK", 2)
    store.commit(batch(*(late(n, timedelta() if n < 3 or n == 299 else 2 * DAY) for n in range(300))))
    found = store.window(after=0, up_to=300, limit=3, max_lateness=DAY)
    assert [stored.seq for stored in found] == [2, 3, 300]


def test_the_seed_decides_what_is_drawn(store: Store, tmp_path: Path) -> None:
    filled(store)
    first = store.snapshot(tmp_path / "a", **BOUNDS)
    again = store.snapshot(tmp_path / "b", **BOUNDS)
    other = store.snapshot(tmp_path / "c", **{**BOUNDS, "seed": 8})
    assert again == first
    assert other.files["train.parquet"] == first.files["train.parquet"]
    assert other.files["replay.parquet"] != first.files["replay.parquet"]
    assert other.sha256 != first.sha256


def test_an_empty_snapshot_still_has_its_files(store: Store, tmp_path: Path) -> None:
    manifest = store.snapshot(tmp_path, **{**BOUNDS, "data_cut": 0, "recent_after": 0})
    assert set(manifest.rows.values()) == {0}
    assert manifest.newest_occurred_at is None
    assert rows(tmp_path, "holdout") == []


@pytest.mark.parametrize("block", [sampling.BLOCK, 4])
def test_both_stores_take_the_same_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Also when the store is much larger than the sample, and only some blocks of it are looked at."""
    monkeypatch.setattr(sampling, "BLOCK", block)
    on_disk = duckdb_store(tmp_path)
    manifests = [
        filled(store, 400).snapshot(tmp_path / name, **{**BOUNDS, "data_cut": 395, "recent_after": 300})
        for name, store in (("memory", InMemoryStore()), ("duckdb", on_disk))
    ]
    on_disk.close()
    for name in ("train", "replay", "validation", "holdout"):
        assert rows(tmp_path / "memory", name) == rows(tmp_path / "duckdb", name)
    assert manifests[0].rows == manifests[1].rows


# --- runs, decisions, facts ---------------------------------------------------------------------------------------


def run(number: int, **changes: Any) -> Run:
    plain = Run(f"run-{number}", RunState.TRAINING, START + timedelta(hours=number), ["drift"], None, data_cut=10)
    return replace(plain, **changes)


def test_a_run_is_replaced_and_the_newest_comes_first(store: Store) -> None:
    for number in (1, 2, 3):
        store.save_run(run(number))
    finished = run(1, state=RunState.FINISHED, finished_at=START, version=4, outcome=Outcome.PASS, detail="done")
    store.save_run(finished)
    assert list(store.runs(10)) == [run(3), run(2), finished]
    assert list(store.runs(1)) == [run(3)]
    assert store.run("run-1") == finished
    with pytest.raises(NotFoundError, match="run-9"):
        store.run("run-9")


def test_runs_that_were_going_on_are_abandoned(store: Store) -> None:
    done = run(1, state=RunState.FAILED, finished_at=START)
    for one in (done, run(2), run(3, state=RunState.JUDGING)):
        store.save_run(one)
    assert [(one.id, one.state) for one in store.abandon_runs(START)] == [
        ("run-2", RunState.ABANDONED),
        ("run-3", RunState.ABANDONED),
    ]
    assert list(store.runs(9)) == [
        run(3, state=RunState.ABANDONED, finished_at=START),
        run(2, state=RunState.ABANDONED, finished_at=START),
        done,
    ]
    assert store.abandon_runs(START) == []


def test_decisions_are_numbered_and_come_back_whole(store: Store) -> None:
    promote = Decision(
        at=START,
        action=Action.PROMOTE,
        reasons=["all gates passed"],
        policy_hash="abc",
        triggers=[Trigger(TriggerKind.DRIFT, "label drifted")],
        run_id="run-1",
        version=3,
        verdict=Verdict(Outcome.PASS, [GateResult("floor", Outcome.PASS, "0.9 is above 0.5")]),
        evidence={"accuracy": 0.9, "windows": [1, 2], "champion": None},
    )
    wait = Decision(at=START, action=Action.WAIT, reasons=[], policy_hash="abc", triggers=[], by="ops")
    assert [store.record(promote), store.record(wait)] == [1, 2]
    store.acted(1, START + timedelta(seconds=5))
    assert list(store.decisions(5)) == [
        StoredDecision(2, wait, None),
        StoredDecision(1, promote, START + timedelta(seconds=5)),
    ]
    assert [stored.number for stored in store.decisions(1)] == [2]
    assert store.record(wait) == 3
    assert list(store.unacted()) == [StoredDecision(2, wait, None), StoredDecision(3, wait, None)]


def test_facts_are_kept_and_replaced(store: Store) -> None:
    assert store.get("paused") is None
    store.put("paused", {"since": "today", "deep": [1, None, 2.5]})
    assert store.get("paused") == {"since": "today", "deep": [1, None, 2.5]}
    store.put("paused", None)
    assert store.get("paused") is None


def test_times_come_back_aware(store: Store) -> None:
    filled(store, 1)
    (stored,) = store.window(after=0, up_to=1, limit=1)
    assert stored.occurred_at.tzinfo == UTC
