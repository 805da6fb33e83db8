"""What goes from a store and what stays known of it: what runs were given, retention, forgetting."""

import random
import threading
import tracemalloc
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from daemon.core.errors import LockedError, OutcomeUnknownError, StoreError
from daemon.core.states import Action, HalfKind, QuarantineReason, RunState, SkipReason
from daemon.core.stream import Advance, Amendment, Batch, DeadLetter, Half, Position, Quarantined, Skip, Tail
from daemon.core.types import Decision, Run
from daemon.core.upkeep import Retention
from daemon.store import database_file, letters
from daemon.store import erasure as erasures
from daemon.store.database_file import copy_tables, folder_of_copies
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START
from tests.stores import (
    PERSON,
    SENTINEL,
    ZERO,
    break_next,
    commit,
    example,
    killed_at,
    letter,
    opened,
    path_in,
    snapshot,
    sound,
)

FOR_EVER = Retention(None, None, keep_waits=timedelta(days=10_000), keep_details=timedelta(days=10_000))


# --- what a run was given -----------------------------------------------------------------------------------------


def test_the_store_keeps_in_mind_which_examples_a_run_was_given(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(10)))
    snapshot(store, tmp_path / "run-1", "run-1", cut=7)
    keeper = DuckdbKeeper(store)
    data = keeper.run_data("run-1")
    assert data is not None
    assert data.seqs == {"train.parquet": [(1, 7)]}
    assert (data.rows, data.expired_at, data.erased_at) == ({"train.parquet": 7}, None, None)
    assert len(data.sha256) == 64
    assert keeper.run_data("run-2") is None
    store.close()


# --- retention ----------------------------------------------------------------------------------------------------


def test_the_oldest_go_and_their_offsets_stay_covered_in_one_range(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset, at=START + timedelta(hours=offset)) for offset in range(10)))
    commit(store, *(example(offset, at=START + timedelta(hours=offset)) for offset in range(10, 20)))
    snapshot(store, tmp_path / "old", "old", cut=5)
    keeper = DuckdbKeeper(store)
    now = START + timedelta(hours=20)
    first = keeper.expire(replace(FOR_EVER, keep_for=timedelta(hours=17)), now)
    assert (first.examples, first.runs) == (3, ["old"])
    second = keeper.expire(replace(FOR_EVER, keep_examples=12), now)
    assert (second.examples, second.runs) == (5, []), "a run is named when its data stops being whole"
    assert keeper.expire(replace(FOR_EVER, keep_examples=12), now).examples == 0
    assert store.counts().skipped_offsets == 8
    assert store.counts().examples == 12
    assert [one.seq for one in store.window(after=0, up_to=99, limit=99)] == list(range(9, 21))
    assert sound(store)
    data = keeper.run_data("old")
    assert data is not None and data.expired_at == now
    with store.database.cursor() as cursor:
        assert cursor.execute("select start, stop, reason from skips").fetchall() == [(0, 8, "expired")]
        assert cursor.execute("select count(*) from retention_log").fetchone() == (2,)
    store.close()


def test_replay_is_drawn_from_what_retention_has_left(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(60_000)))
    keeper = DuckdbKeeper(store)
    while keeper.expire(replace(FOR_EVER, keep_examples=6000), START).examples:
        pass
    manifest = store.snapshot(
        tmp_path / "run",
        data_cut=60_000,
        recent_after=59_000,
        train_limit=500,
        replay_limit=500,
        holdout_limit=500,
        seed=1,
        run_id="run",
    )
    assert manifest.rows["replay.parquet"] == 500
    store.close()


def test_seqs_are_not_given_twice_after_everything_expired(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(4)))
    DuckdbKeeper(store).expire(replace(FOR_EVER, keep_for=timedelta(days=1)), START + timedelta(days=2))
    assert store.counts().examples == 0
    store.close()
    store = opened(tmp_path)
    commit(store, example(4))
    assert store.counts().last_seq == 5
    assert sound(store)
    store.close()


def test_an_old_example_that_was_released_late_takes_no_newer_ones_with_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset, at=START + timedelta(days=9)) for offset in range(4)))
    commit(store, example(4, at=START))
    assert (
        DuckdbKeeper(store).expire(replace(FOR_EVER, keep_for=timedelta(days=5)), START + timedelta(days=10)).examples
        == 0
    )
    store.close()


def test_an_example_from_a_time_to_come_keeps_no_old_ones_back_and_goes_only_with_them(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ahead = START + timedelta(days=400)
    times = [START, ahead, START, START, START + timedelta(days=9), ahead]
    commit(store, *(example(offset, at=at) for offset, at in enumerate(times)))
    keeper = DuckdbKeeper(store)
    assert keeper.expire(replace(FOR_EVER, keep_for=timedelta(days=5)), START + timedelta(days=10)).examples == 4
    assert keeper.expire(replace(FOR_EVER, keep_for=timedelta(days=5)), START + timedelta(days=20)).examples == 1
    assert [one.id for one in store.window(after=0, up_to=9, limit=9)] == ["id-5"]
    store.close()


def test_dead_letters_quarantine_and_halves_expire_by_age(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(
        Batch(
            [],
            [letter(0, b"x"), letter(1, b"y", START + timedelta(days=9))],
            [],
            {ZERO: Advance(None, 4)},
            quarantined=[Quarantined(example(2), QuarantineReason.NEW_SOURCE, "")],
            halves=[half(3)],
        )
    )
    expired = DuckdbKeeper(store).expire(replace(FOR_EVER, keep_for=timedelta(days=5)), START + timedelta(days=10))
    assert (expired.dead_letters, expired.quarantined, expired.halves) == (1, 1, 1)
    counts = store.counts()
    assert (counts.dead_letters, counts.quarantined, counts.halves, counts.skipped_offsets) == (1, 0, 0, 3)
    assert sound(store)
    store.close()


def half(offset: int, subject: str | None = None, id_: str = "h", text: str | None = None) -> Half:
    position = Position("examples", 0, offset)
    return Half(position, HalfKind.PREDICTION, id_, text, None, "yes", 1, START, START, "source", subject)


def test_old_decisions_to_wait_go_and_all_others_stay(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for action in (Action.WAIT, Action.PROMOTE, Action.WAIT, Action.WAIT):
        store.record(Decision(START, action, ["reason"], "hash"))
    expired = DuckdbKeeper(store).expire(replace(FOR_EVER, keep_waits=timedelta(days=1)), START + timedelta(days=2))
    assert expired.waits == 2
    assert [(one.number, one.decision.action) for one in store.decisions(9)] == [(4, "wait"), (2, "promote")]
    assert store.record(Decision(START, Action.WAIT, ["reason"], "hash")) == 5
    store.close()


def test_of_old_runs_the_rows_go_and_the_digest_and_the_people_stay(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, example(0, subject=PERSON), example(1))
    for run_id, age in (("run-1", 9), ("run-2", 1)):
        store.save_run(Run(run_id, RunState.FINISHED, START - timedelta(days=age), [], None, 2))
        snapshot(store, tmp_path / run_id, run_id, cut=2)
    keeper = DuckdbKeeper(store)
    keeper.expire(replace(FOR_EVER, keep_examples=1), START - timedelta(days=9))
    keeper.expire(replace(FOR_EVER, keep_details=timedelta(days=5)), START)
    old, new = keeper.run_data("run-1"), keeper.run_data("run-2")
    assert old is not None and new is not None
    assert (old.seqs, old.rows, len(old.sha256)) == ({}, {}, 64)
    assert new.seqs == {"train.parquet": [(1, 2)]}
    with store.database.cursor() as cursor:
        assert cursor.execute("select count(*) from retention_log").fetchone() == (0,)
    assert keeper.forget(PERSON, lambda _: False, START).runs == ["run-1", "run-2"]
    store.close()


def test_a_record_without_a_time_and_one_of_a_time_to_come_say_nothing_about_the_clock(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    later = int((START + timedelta(days=1)).timestamp() * 1000)
    for offset, sent in enumerate((-1, later)):
        tail = Tail(offset, sent, "", "")
        store.commit(Batch([], [letter(offset, b"x")], [], {ZERO: Advance(offset or None, offset + 1, tail)}))
        assert keeper.newest_sent(START) is None
    assert keeper.newest_sent(START + timedelta(days=2)) == START + timedelta(days=1)
    store.close()


# --- forgetting ---------------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("at_once", [1, 256])
def test_nothing_of_a_forgotten_person_is_left_in_the_file_and_no_replay_brings_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(erasures, "MOST_TOUCHED", at_once)
    store = opened(tmp_path)
    store.commit(
        Batch(
            [example(0), example(1, subject=PERSON, text=SENTINEL), example(2, subject=PERSON, text=SENTINEL)],
            [letter(3, b'{"person": "' + SENTINEL.encode() + b'"'), letter(4, b"somebody else")],
            [],
            {ZERO: Advance(None, 8)},
            quarantined=[Quarantined(example(5, subject=PERSON, text=SENTINEL), QuarantineReason.NEW_SOURCE, SENTINEL)],
            halves=[half(6, PERSON, text=SENTINEL), half(7, None)],
        )
    )
    snapshot(store, tmp_path / "runs" / "run-1", "run-1", cut=3)
    keeper = DuckdbKeeper(store)
    with store.database.transaction() as cursor:
        cursor.execute("select 1")
    erasure = keeper.forget(PERSON, lambda one: SENTINEL.encode() in (one.value or b""), START)
    assert (erasure.examples, erasure.dead_letters, erasure.quarantined, erasure.halves) == (2, 1, 1, 2)
    assert erasure.runs == ["run-1"]
    assert [one.number for one in keeper.unfinished_erasures()] == [1]
    store.close()

    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    assert [one.number for one in keeper.unfinished_erasures()] == [1], "killed before the rewrite, it is still to do"
    keeper.finish_erasure(1, START)
    assert keeper.unfinished_erasures() == []
    commit(store, example(8, subject=PERSON, text=SENTINEL), example(9))
    assert [one.id for one in store.window(after=0, up_to=99, limit=99)] == ["id-0", "id-9"]
    assert store.counts().dead_letters == 1
    assert sound(store)
    data = keeper.run_data("run-1")
    assert data is not None and data.erased_at == START
    with store.database.cursor() as cursor:
        skips = cursor.execute("select start, stop, reason from skips order by start").fetchall()
    assert skips == [(1, 4, "erased"), (5, 8, "erased"), (8, 9, "erased")]
    store.close()
    assert SENTINEL.encode() not in bytes_of(tmp_path / "data")


@pytest.mark.parametrize("durable", [True, False])
def test_after_a_failed_commit_a_person_is_forgotten_or_not_and_the_store_knows_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    store = opened(tmp_path)
    commit(store, example(0, subject=PERSON), example(1))
    snapshot(store, tmp_path / "run-1", "run-1", cut=2)
    keeper = DuckdbKeeper(store)
    break_next(monkeypatch, "_commit", durable=durable)
    with pytest.raises(OutcomeUnknownError):
        keeper.forget(PERSON, lambda _: False, START)
    assert len(keeper.unfinished_erasures()) == durable
    commit(store, example(2, subject=PERSON))
    kept = [one.id for one in store.window(after=0, up_to=9, limit=9)]
    assert kept == (["id-1"] if durable else ["id-0", "id-1", "id-2"]), "nobody is skipped who was not forgotten"

    again = keeper.forget(PERSON, lambda _: False, START)
    assert again.runs == ["run-1"], "the run is named also where the first erasure has taken the examples"
    assert [one.id for one in store.window(after=0, up_to=9, limit=9)] == ["id-1"]
    assert sound(store)
    store.close()


def test_who_could_not_be_forgotten_is_not_skipped(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(Batch([], [letter(0, b"x")], [], {ZERO: Advance(None, 1)}))
    with pytest.raises(ZeroDivisionError):
        DuckdbKeeper(store).forget(PERSON, lambda _: 1 // 0 == 0, START)
    commit(store, example(1, subject=PERSON))
    assert store.counts().examples == 1
    store.close()


def test_an_erasure_killed_before_the_new_file_is_in_place_is_finished_later(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, example(0), example(1, subject=PERSON, text=SENTINEL))
    store.close()
    assert SENTINEL.encode() in bytes_of(tmp_path / "data")
    killed_at(
        "before_rewritten_store",
        f"""
keeper = DuckdbKeeper(opened(Path({str(tmp_path)!r})))
keeper.finish_erasure(keeper.forget({PERSON!r}, lambda one: False, START).number, START)
""",
    )
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    assert store.counts().examples == 1
    for erasure in keeper.unfinished_erasures():
        keeper.finish_erasure(erasure.number, START)
    commit(store, example(2))
    assert sound(store)
    store.close()
    assert SENTINEL.encode() not in bytes_of(tmp_path / "data")


def test_many_dead_letters_are_looked_through_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    with store.database.transaction() as cursor:
        cursor.execute(
            "insert into dead_letters select range + 1, 'examples', 0, range, 'not_json', '', null, 'x'::blob, "
            "timestamp '2026-01-01' from range(50_000)"
        )

    def stop(_: DeadLetter) -> bool:
        raise InterruptedError

    tracemalloc.start()
    with pytest.raises(InterruptedError):
        keeper.forget(PERSON, stop, START)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4_000_000
    monkeypatch.setattr(letters, "_NAMED", 20)
    with store.database.transaction() as cursor:
        cursor.execute("delete from dead_letters where seq > 50 or seq between 10 and 20")
        assert [letter.position.offset for letter in letters.all_letters(cursor)] == [*range(9), *range(20, 50)]
    store.close()


def test_an_erasure_that_a_full_disk_stopped_is_finished_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    commit(store, example(0), example(1, subject=PERSON, text=SENTINEL))
    number = keeper.forget(PERSON, lambda one: False, START).number

    def fill_the_disk(cursor: Any, name: str) -> None:
        copy_tables(cursor, name)
        raise duckdb.IOException("No space left on device")

    monkeypatch.setattr(database_file, "copy_tables", fill_the_disk)
    with pytest.raises(StoreError, match="No space"):
        keeper.finish_erasure(number, START)
    assert not list(folder_of_copies(path_in(tmp_path)).iterdir()), (
        "what is left of the copy takes the room that is missing"
    )
    monkeypatch.undo()
    keeper.finish_erasure(number, START)
    assert not keeper.unfinished_erasures()
    store.close()
    assert SENTINEL.encode() not in bytes_of(tmp_path / "data")


def test_who_commits_waits_while_the_file_is_rewritten_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    commit(store, example(0), example(1, subject=PERSON))
    number = keeper.forget(PERSON, lambda one: False, START).number
    assert not keeper.holds_up_writers()
    waited = []

    def take_long(cursor: Any, name: str) -> None:
        writer = threading.Thread(target=commit, args=(store, example(2)))
        writer.start()
        writer.join(0.1)
        waited.append((writer, writer.is_alive(), keeper.holds_up_writers()))
        copy_tables(cursor, name)

    monkeypatch.setattr(database_file, "copy_tables", take_long)
    keeper.finish_erasure(number, START)
    ((writer, was_waiting, told),) = waited
    assert was_waiting and told
    writer.join()
    assert not keeper.holds_up_writers()
    assert store.counts().examples == 2
    store.close()


def test_reading_goes_on_while_the_file_is_rewritten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    commit(store, *(example(offset) for offset in range(100)))
    before = path_in(tmp_path).stat().st_ino
    store.database.rewrite()
    assert path_in(tmp_path).stat().st_ino != before
    assert store.counts().examples == store.examples_after(0) == 100
    commit(store, example(100))
    assert sound(store)
    with pytest.raises(LockedError):
        opened(tmp_path)
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_expires_is_dropped_or_forgotten_every_offset_still_ends_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = opened(tmp_path)
    keeper = DuckdbKeeper(store)
    reached, now = 0, START
    for _ in range(20):
        now += timedelta(hours=1)
        deed = chance.choice(["read", "read", "read", "expire by age", "expire by count", "forget", "drop", "rewrite"])
        if deed == "read":
            kinds = [chance.choice(["example", "letter", "aside", "half"]) for _ in range(chance.randint(1, 9))]
            store.commit(mixed(kinds, reached, now, chance))
            reached += len(kinds)
        elif deed == "expire by age":
            keeper.expire(replace(FOR_EVER, keep_for=timedelta(hours=chance.randint(2, 20))), now)
        elif deed == "expire by count":
            keeper.expire(replace(FOR_EVER, keep_examples=chance.randint(1, 20)), now)
        elif deed == "forget":
            keeper.forget(f"person-{chance.randint(0, 9)}", lambda letter: letter.position.offset % 7 == 0, now)
        elif deed == "drop":
            gone = [letter.position for letter in store.dead_letters(chance.randint(1, 3))]
            store.amend(
                Amendment(
                    gone,
                    skips=[Skip(at.topic, at.partition, at.offset, at.offset + 1, SkipReason.DROPPED) for at in gone],
                )
            )
        else:
            store.database.rewrite()
        assert sound(store), deed
        kept, counts = store.coverage(), store.counts()
        assert (kept.examples, kept.skipped_offsets) == (counts.examples, counts.skipped_offsets), deed
    store.close()


def mixed(kinds: list[str], first: int, at: datetime, chance: random.Random) -> Batch:
    found: dict[str, list[Any]] = {"example": [], "letter": [], "aside": [], "half": []}
    for offset, kind in enumerate(kinds, first):
        subject = f"person-{chance.randint(0, 9)}"
        one = example(offset, at=at, subject=subject)
        found[kind].append(
            {
                "example": one,
                "letter": letter(offset, b"x", at),
                "aside": Quarantined(one, QuarantineReason.QUALITY, ""),
                "half": replace(half(offset, subject, id_=one.id), ingested_at=at),
            }[kind]
        )
    advance = {ZERO: Advance(first or None, first + len(kinds))}
    return Batch(found["example"], found["letter"], [], advance, quarantined=found["aside"], halves=found["half"])
