"""Hypothesis tells stories about the stream and the store, and looks for one that ends badly.

Records are produced, delivered again, out of order between partitions; the process dies on either side of COMMIT, or COMMIT
raises; the store is restarted, backed up and restored; operators mend and drop, data expires, people are forgotten. After each
step the store must hold what a small model says. Nothing here is a mock: crashes are images of the files as they lay.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import hypothesis
import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from daemon.core.errors import OutcomeUnknownError, SourceError
from daemon.core.states import SkipReason, Split
from daemon.core.stream import Amendment, Example, Position, Record, Skip, TopicPartition
from daemon.core.upkeep import Retention
from daemon.ingest import consume
from daemon.store import duckdb_database
from daemon.store.backup import restore
from daemon.store.database_file import duckdb_options
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START
from daemon.testing.source import Deliver, Fail, Redeliver, ScriptedSource
from daemon.testing.store import InMemoryStore
from tests.faults import life
from tests.faults.invariants import Finding, check_coverage, dump

PARTITIONS = [TopicPartition("examples", 0), TopicPartition("examples", 1)]
PEOPLE = ("ann", "bob", "cid")
KINDS = ("good", "good", "good", "bad", "tombstone", "hole", "twin")
Place = tuple[TopicPartition, int]


class Crash(BaseException):
    """Stands for the process dying: nothing of ours may catch it."""


class Unordered(ScriptedSource):
    """Its partitions come in any order, and so do their records; each partition's own stay in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rng: random.Random | None = None
        self.next_step: Any = None

    def poll(self, timeout: float) -> Sequence[Record]:
        if self.next_step is not None:
            self._script, self.next_step = [self.next_step], None
        records = list(super().poll(timeout))
        if self.rng is None:
            return records
        queues = [[r for r in records if r.position.topic_partition == each] for each in PARTITIONS]
        mixed = []
        while any(queues):
            mixed.append(self.rng.choice([queue for queue in queues if queue]).pop(0))
        return mixed


@dataclass
class Expected:
    """What the store should hold, given how far it is."""

    log: dict[Place, str] = field(default_factory=dict)  # kind of every offset produced, holes too
    mended: set[Place] = field(default_factory=set)
    dropped: set[Place] = field(default_factory=set)
    expired: set[str] = field(default_factory=set)  # ids
    forgotten: set[str] = field(default_factory=set)  # people

    def examples(self, stands: Mapping[TopicPartition, int]) -> dict[str, str]:
        """Text by id."""
        kept = {}
        for (partition, offset), kind in self.log.items():
            if offset < stands.get(partition, 0):
                if kind == "good" and person_of(offset) not in self.forgotten:
                    kept[id_of(partition, offset)] = text_of(partition, offset)
                elif (partition, offset) in self.mended:
                    kept[f"mended-{id_of(partition, offset)}"] = "mended"
        return {example_id: text for example_id, text in kept.items() if example_id not in self.expired}

    def dead_letters(self, stands: Mapping[TopicPartition, int]) -> set[Place]:
        return {
            (partition, offset)
            for (partition, offset), kind in self.log.items()
            if kind == "bad"
            and offset < stands.get(partition, 0)
            and (partition, offset) not in self.mended | self.dropped
        }


def id_of(partition: TopicPartition, offset: int) -> str:
    return f"{partition.partition}-{offset}"


def text_of(partition: TopicPartition, offset: int) -> str:
    return f"what stands at {partition.partition}-{offset}"


def person_of(offset: int) -> str:
    return PEOPLE[offset % len(PEOPLE)]


class Machine(RuleBasedStateMachine):
    """Over the store in memory; `OnDisk` has the real one, and more to go through."""

    faults = 0  # of all stories so far

    def __init__(self) -> None:
        super().__init__()
        self.expected = Expected()
        self.floor: dict[TopicPartition, int] = {}  # what was acknowledged
        self.source = Unordered()
        self.store = self.first_store()
        self.start()

    # --- the store ------------------------------------------------------------------------------------------------

    def first_store(self) -> Any:
        return InMemoryStore()

    def start(self) -> None:
        """A new process: it knows nothing but what is in the store."""
        self.ingest = life.ingest_of(self.source, _Floored(self))

    def die_and_start(self) -> None:
        self.start()

    @contextmanager
    def commit_raises(self, *, durable: bool) -> Iterator[None]:
        self.store.break_next_commit(durable=durable)
        yield
        self.store._breaking = None

    # --- the stream -----------------------------------------------------------------------------------------------

    @rule(partition=st.sampled_from(PARTITIONS), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8))
    def produce(self, partition: TopicPartition, kinds: list[str]) -> None:
        offset = sum(place[0] == partition for place in self.expected.log)
        for kind in kinds:
            good = [o for (p, o), k in self.expected.log.items() if p == partition and k == "good"]
            kind = "good" if kind == "twin" and not good else kind
            if kind != "hole":
                self.source.produce(self._record(partition, offset, kind, good))
            self.expected.log[partition, offset] = kind
            offset += 1

    def _record(self, partition: TopicPartition, offset: int, kind: str, good: list[int]) -> Record:
        original = good[-1] if kind == "twin" else offset
        body = {
            "id": id_of(partition, original),
            "text": text_of(partition, original),
            "label": life.LABELS[original % 3],
            "person": person_of(original),
        }
        value = {"bad": b"not json", "tombstone": None}.get(kind, json.dumps(body).encode())
        return Record(Position(*partition, offset), START, b"key", value)

    @rule(most=st.integers(1, 8), seed=st.none() | st.integers(0, 100))
    def deliver(self, most: int, seed: int | None) -> None:
        self._step(Deliver(most), seed)

    @rule(back=st.integers(1, 6))
    def redeliver(self, back: int) -> None:
        self._step(Redeliver(back))

    def _step(self, step: Any, seed: int | None = None) -> None:
        self.source.next_step = step
        self.source.rng = None if seed is None else random.Random(seed)
        self.ingest.step()

    # --- what goes wrong ------------------------------------------------------------------------------------------

    @rule()
    def the_source_fails(self) -> None:
        self._strike()
        self.source.next_step = Fail("as the story has it")
        with suppress(SourceError):
            self.ingest.step()

    @rule(place=st.sampled_from(["before_commit", "after_commit"]), most=st.integers(1, 8))
    def it_dies_around_commit(self, place: str, most: int) -> None:
        self._strike()

        def failpoint(name: str) -> None:
            if name == place:
                raise Crash

        before, consume.failpoint = consume.failpoint, failpoint
        try:
            with suppress(Crash):
                self._step(Deliver(most))
        finally:
            consume.failpoint = before
        self.die_and_start()

    @rule(durable=st.booleans(), most=st.integers(1, 8))
    def commit_does_not_say_what_became_of_it(self, durable: bool, most: int) -> None:
        self._strike()
        with self.commit_raises(durable=durable), suppress(OutcomeUnknownError):
            self._step(Deliver(most))

    @rule()
    def it_dies(self) -> None:
        self._strike()
        self.die_and_start()

    def _strike(self) -> None:
        type(self).faults += 1

    # --- what operators do ----------------------------------------------------------------------------------------

    @precondition(lambda self: self._letters())
    @rule(data=st.data(), mend=st.booleans())
    def a_dead_letter_is_mended_or_dropped(self, data: st.DataObject, mend: bool) -> None:
        partition, offset = place = data.draw(st.sampled_from(sorted(self._letters())))
        position = Position(*partition, offset)
        if mend:
            mended = f"mended-{id_of(partition, offset)}"
            example = Example(position, mended, "mended", life.LABELS[0], START, START, "operator", Split.TRAIN)
            self.store.amend(Amendment([position], examples=[example]))
            self.expected.mended.add(place)
        else:
            self.store.amend(Amendment([position], skips=[Skip(*partition, offset, offset + 1, SkipReason.DROPPED)]))
            self.expected.dropped.add(place)

    def _letters(self) -> set[Place]:
        return {(letter.position.topic_partition, letter.position.offset) for letter in self.store.dead_letters(10_000)}

    # --- what must hold after each step ---------------------------------------------------------------------------

    @invariant()
    def every_offset_ended_once(self) -> None:
        """I1."""
        coverage = self.store.coverage()
        assert (coverage.lost, coverage.twice) == (0, 0), coverage

    @invariant()
    def nothing_acknowledged_is_gone(self) -> None:
        """I2 and I3."""
        stands = self.store.next_offsets()
        assert all(stands.get(partition, 0) >= floor for partition, floor in self.floor.items()), (stands, self.floor)

    @invariant()
    def the_store_holds_what_was_produced(self) -> None:
        """I4."""
        stands = self.store.next_offsets()
        stored = self.store.window(after=0, up_to=1 << 40, limit=1 << 40)
        assert len(stored) == len({example.seq for example in stored}) == self.store.counts().examples
        assert {example.id: example.text for example in stored} == self.expected.examples(stands)
        assert len(stored) == len({example.id for example in stored})
        assert self._letters() == self.expected.dead_letters(stands)


class _Floored:
    """The machine's store of the moment; what it acknowledges is the floor from then on."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine.store, name)

    def commit(self, batch: Any) -> None:
        self._machine.store.commit(batch)
        self._machine.floor.update({partition: advance.next for partition, advance in batch.advances.items()})


class OnDisk(Machine):
    """The real DuckDB store."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="relearnd-machine-")
        self._lives = 0
        self._old: list[DuckdbStore] = []
        self.backup: tuple[Path, dict[TopicPartition, int], Expected] | None = None
        self.epoch = 0
        super().__init__()

    def _home(self) -> Path:
        return Path(self._folder.name) / f"life-{self._lives}"

    def first_store(self) -> Any:
        return life.opened(self._home())

    def die_and_start(self) -> None:
        """The image of its files is all that is left; the process that lay there is gone, whatever it still does."""
        image = self._home()
        self._lives += 1
        self._home().mkdir()
        for file in image.glob(f"{life.STORE}*"):
            if file.is_file():
                shutil.copyfile(file, self._home() / file.name)
        self._old.append(self.store)
        self._open()

    def _open(self) -> None:
        self.store = life.opened(self._home())
        self.start()
        self._epoch_rises()

    def _epoch_rises(self) -> None:
        """I12."""
        epoch = life.epoch(self.store)
        assert epoch > self.epoch, (epoch, self.epoch)
        self.epoch = epoch

    @contextmanager
    def commit_raises(self, *, durable: bool) -> Iterator[None]:
        commit = duckdb_database._commit

        def fail(cursor: Any) -> None:
            duckdb_database._commit = commit
            if durable:
                commit(cursor)
            raise duckdb.FatalException("the disk is full, says the story")

        duckdb_database._commit = fail
        try:
            yield
        finally:
            duckdb_database._commit = commit

    @rule()
    def it_is_stopped_and_started(self) -> None:
        self.store.close()
        self._open()

    @precondition(lambda self: self.backup is None)
    @rule()
    def a_backup_is_made(self) -> None:
        made = DuckdbKeeper(self.store).back_up(Path(self._folder.name) / "backups", START)
        expected = Expected(**{name: type(value)(value) for name, value in vars(self.expected).items()})
        self.backup = (Path(made.folder), dict(self.store.next_offsets()), expected)

    @precondition(lambda self: self.backup is not None)
    @rule()
    def the_backup_is_restored(self) -> None:
        """What was read since comes again; who was forgotten since stays forgotten."""
        assert self.backup is not None
        self._strike()
        folder, stood, then = self.backup
        self.store.close()
        restore(folder, self._home() / life.STORE, duckdb_options(1 << 28, 1), START + timedelta(days=self._lives))
        self.floor = dict(stood)
        self.expected = Expected(self.expected.log, then.mended, then.dropped, then.expired, self.expected.forgotten)
        self.epoch = 0
        self._lives += 1
        (Path(self._folder.name) / f"life-{self._lives - 1}").rename(self._home())
        self._open()
        self.backup = None
        shutil.rmtree(folder)

    @rule(person=st.sampled_from(PEOPLE))
    def a_person_is_forgotten(self, person: str) -> None:
        keeper = DuckdbKeeper(self.store)
        erasure = keeper.forget(life.hashed(person), lambda _: False, START)
        keeper.finish_erasure(erasure.number, START)
        self.expected.forgotten.add(person)

    @rule(person=st.sampled_from(PEOPLE), durable=st.booleans())
    def forgetting_does_not_say_what_became_of_it(self, person: str, durable: bool) -> None:
        self._strike()
        with self.commit_raises(durable=durable), suppress(OutcomeUnknownError):
            DuckdbKeeper(self.store).forget(life.hashed(person), lambda _: False, START)
        if durable:
            self.expected.forgotten.add(person)

    @rule(keep=st.integers(1, 30))
    def the_oldest_expire(self, keep: int) -> None:
        before = [example.id for example in self.store.window(after=0, up_to=1 << 40, limit=1 << 40)]
        DuckdbKeeper(self.store).expire(Retention(None, keep, timedelta(days=365), timedelta(days=365)), START)
        after = [example.id for example in self.store.window(after=0, up_to=1 << 40, limit=1 << 40)]
        assert after == before[-keep:]
        self.expected.expired |= set(before) - set(after)

    @invariant()
    def those_who_are_skipped_were_forgotten(self) -> None:
        assert self.store.erased == {life.hashed(person) for person in self.expected.forgotten}

    @invariant()
    def every_row_is_where_it_belongs(self) -> None:
        finding = Finding()
        check_coverage(self.store, dump(self.store), finding)
        assert finding.clean, finding

    def teardown(self) -> None:
        for store in (self.store, *self._old):
            store.close()
        self._folder.cleanup()


def tell_stories(machine: type[Machine], *, stories: int, steps: int, seed: int) -> int:
    """So many; raises with the shortest one that ends badly. Returns how many faults there were in them."""
    machine.faults = 0
    seeded = hypothesis.seed(seed)(type(machine.__name__, (machine,), {}))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        seeded, settings=settings(max_examples=stories, stateful_step_count=steps, deadline=None, database=None)
    )
    return int(seeded.faults)
