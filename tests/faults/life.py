"""A store's life as a script: records come in by the real loop, operators act in between, and it dies anywhere.

Played from its beginning after each fault: what is durable is not done again. A witness outside the store's folder notes what
was asked for and what was acknowledged; the checks hold the store to it.
"""

import json
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import structlog

from daemon.config import FieldNames, KafkaConfig, Splits
from daemon.core.errors import OutcomeUnknownError, SourceError, StaleBatchError
from daemon.core.ports import Clock
from daemon.core.states import Action, RunState, SkipReason, Split
from daemon.core.stream import Advance, Amendment, Batch, Example, Position, Record, Skip, TopicPartition
from daemon.core.types import Decision, Run
from daemon.core.upkeep import Retention
from daemon.ingest import consume
from daemon.ingest.breaker import Breaker
from daemon.ingest.consume import Ingest
from daemon.ingest.curate import Curator
from daemon.ingest.decode import Decoder
from daemon.ingest.halves import half_readers
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.store import database_file, duckdb_database, duckdb_store, erasure
from daemon.store.backup import read_backup
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START, ManualClock
from daemon.testing.source import Deliver, Fail, Redeliver, ScriptedSource

STORE = "store.duckdb"
TOPIC, ANSWERS, LABELS_OF_ANSWERS = "examples", "predictions", "labels"
ZERO = TopicPartition(TOPIC, 0)
MANY = TopicPartition("many", 0)
PARTITIONS = (ZERO, TopicPartition(TOPIC, 1), TopicPartition(ANSWERS, 0), TopicPartition(LABELS_OF_ANSWERS, 0))
KAFKA = KafkaConfig(
    topics=[TOPIC],
    predictions_topic=ANSWERS,
    labels_topic=LABELS_OF_ANSWERS,
    fields=FieldNames(subject="person"),
)
RECORDS = RecordsPolicy(max_reject_share=1.0)
LABELS = ("negative", "neutral", "positive")
PEOPLE = ("ann", "bob", "cid", "dora", "emil")
BAD = (b"\xff\xfe", b"not json", b'{"id": "x", "text": "no label"}', b'{"score": NaN}', b'{"id": 1, "id": 2}')
MOST_ROUNDS = 400  # of one stage; a loop that needs more goes in circles
CHECKPOINT_AT = 24 << 10  # bytes of log, so that a short life has several
LAST = 80  # offsets of each partition
LABEL_COMES_AFTER = 12  # offsets between an answer and its label; every fourth label comes as much before it
LEAST_ROW_GROUP = 2048  # rows, of DuckDB's
SCHEMA_1 = Path(__file__).parents[1] / "fixtures" / "store_schema_1.sql"


# --- what is produced ---------------------------------------------------------------------------------------------


def record(partition: TopicPartition, offset: int) -> Record | None:
    """What stands at an offset; None where compaction left a hole. Every text is there once in the world, but for twins."""
    value = _VALUES[partition.topic](partition, offset)
    return None if value == b"" else Record(Position(*partition, offset), START, b"key", value)


def _example_value(partition: TopicPartition, offset: int) -> bytes | None:
    place = offset % 20
    if place in (5, 6):
        return b""
    if place == 3:
        return BAD[offset // 20 % len(BAD)]
    if place == 9:
        return None
    original = offset - 1 if place in (11, 13) else offset  # a twin, and one with another label
    label = "furious" if place == 15 else LABELS[(original + (place == 13)) % 3]
    body = {
        "id": f"{partition.partition}-{original}",
        "text": text_of(partition, original),
        "label": label,
        "person": PEOPLE[original % 5],
    }
    return json.dumps(body).encode()


def _answer_value(partition: TopicPartition, offset: int) -> bytes | None:
    answer = {
        "id": f"answer-{offset}",
        "text": text_of(partition, offset),
        "prediction": LABELS[0],
        "version": 1,
        "subject": PEOPLE[offset % 5],
    }
    return json.dumps(answer).encode()


def _label_value(_: TopicPartition, offset: int) -> bytes | None:
    if offset % 7 == 2:
        return b"no label either"
    belongs_to = offset + LABEL_COMES_AFTER if offset % 4 == 0 else offset - LABEL_COMES_AFTER
    return json.dumps({"id": f"answer-{belongs_to}", "label": LABELS[offset % 3]}).encode()


_VALUES: Mapping[str, Callable[[TopicPartition, int], bytes | None]] = {
    TOPIC: _example_value,
    ANSWERS: _answer_value,
    LABELS_OF_ANSWERS: _label_value,
}


@cache
def text_of(partition: TopicPartition, offset: int) -> str:
    rng = random.Random(f"{partition}-{offset}")
    words = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=200))
    return f"{partition.topic}-{partition.partition}-{offset} {words}"


def hashed(person: str) -> str:
    return sha256(person.encode()).hexdigest()


# --- who tells ----------------------------------------------------------------------------------------------------


@dataclass
class Witness:
    """Notes outside the store. Each is written before the next thing happens, and a kill cannot take it back."""

    path: Path
    _descriptor: int = field(init=False)

    def __post_init__(self) -> None:
        self._descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def note(self, what: str, value: Any) -> None:
        os.write(self._descriptor, f"{json.dumps([what, value])}\n".encode())


class WitnessedStore:
    """The real store; the witness hears of each commit before and after."""

    def __init__(self, store: DuckdbStore, witness: Witness) -> None:
        self._store = store
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, batch: Batch) -> None:
        reached = [[*partition, advance.next] for partition, advance in batch.advances.items()]
        self._witness.note("asked", reached)
        self._store.commit(batch)
        self._witness.note("acknowledged", reached)


# --- what happens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Where a stage is played. `day` is what the clock says, in days after the beginning."""

    store: DuckdbStore
    witness: Witness
    folder: Path

    @property
    def keeper(self) -> DuckdbKeeper:
        return DuckdbKeeper(self.store)


@dataclass(frozen=True)
class Stage:
    """Played again after a fault, it goes on where it was, or does nothing."""

    name: str
    play: Callable[[Scene], None]


def _ingest(up_to: int, *, day: int, script: Sequence[Any] = ()) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        def there() -> bool:
            stands = scene.store.next_offsets()
            return all(stands.get(partition, 0) >= up_to for partition in PARTITIONS)

        found = [record(partition, offset) for offset in range(up_to) for partition in PARTITIONS]
        left = script
        while not there():  # what is read while a commit is under way may be gone when that has failed
            source = ScriptedSource([each for each in found if each], script=[*left, *[Deliver(6)] * MOST_ROUNDS])
            clock = ManualClock(START + timedelta(day))
            _run(ingest_of(source, WitnessedStore(scene.store, scene.witness), clock=clock), there)
            left = []

    return play


def _run(loop: Ingest, done: Callable[[], bool]) -> None:
    stop = threading.Event()
    rounds = 0

    def beat() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > MOST_ROUNDS:
            raise AssertionError(f"not done after {MOST_ROUNDS} rounds")
        if done():
            stop.set()

    loop.run(stop, beat)


def ingest_of(source: Any, store: Any, *, clock: Clock | None = None, poll_timeout: float = 0.0) -> Ingest:
    """The loop with everything that the learner gives it."""
    clock = clock or ManualClock()
    metrics = LearnerMetrics()
    breaker = Breaker(store, RECORDS, clock, metrics)
    decoder = Decoder(
        KAFKA.fields,
        frozenset(LABELS),
        RECORDS,
        Splits(),
        max_record=1 << 20,
        hash_of=hashed,
        halves=half_readers(KAFKA, RECORDS, LABELS, hashed),
    )
    return Ingest(
        source,
        store,
        decoder,
        clock=clock,
        metrics=metrics,
        rng=random.Random(1),
        poll_timeout=poll_timeout,
        curator=Curator(store, RECORDS, labels=LABELS, splits=Splits(), breaker=breaker, metrics=metrics),
        held=breaker.held,
    )


def _cycle(scene: Scene) -> None:
    """What the learner's cycle writes into the same file."""
    store = scene.store
    store.put("drift_in_a_row", 3)
    if not store.decisions(10):
        store.record(Decision(START, Action.TRAIN, ["the scripted life wants it"], "policy"))
    store.acted(1, START)
    store.save_run(Run("run-1", RunState.TRAINING, START, ["volume"], None, data_cut=20))


def _amend(scene: Scene) -> None:
    """An operator mends a dead letter, releases one from quarantine and gives up another."""
    mended, released, dropped = Position(TOPIC, 0, 3), Position(TOPIC, 1, 13), Position(TOPIC, 1, 15)
    waiting = {one.example.position: one.example for one in scene.store.quarantined(1000)}
    if released not in waiting:
        return
    scene.store.amend(
        Amendment(
            [mended, released, dropped],
            examples=[
                Example(mended, "mended", "mended by hand", LABELS[0], START, START, "operator", Split.TRAIN),
                waiting[released],
            ],
            skips=[Skip(TOPIC, dropped.partition, dropped.offset, dropped.offset + 1, SkipReason.DROPPED)],
        )
    )


def _back_up(scene: Scene) -> None:
    folder = scene.folder / "backups"
    made = list(folder.glob("relearnd-*")) or [Path(scene.keeper.back_up(folder, START).folder)]
    assert read_backup(made[0]).coverage.lost == 0


def _take_many(scene: Scene) -> None:
    """A batch that is large enough to go past the log into the file."""
    if MANY not in scene.store.next_offsets():
        WitnessedStore(scene.store, scene.witness).commit(many())


@cache
def many() -> Batch:
    examples = [
        Example(
            Position(*MANY, offset), f"many-{offset}", f"many {offset}", LABELS[0], START, START, "many", Split.TRAIN
        )
        for offset in range(LEAST_ROW_GROUP + 52)
    ]
    return Batch(examples, [], [], {MANY: Advance(None, len(examples))})


def _expire(scene: Scene) -> None:
    """All that came in on the first day."""
    year = timedelta(days=365)
    scene.keeper.expire(Retention(timedelta(hours=36), None, year, year), START + timedelta(days=2))


def _forget(scene: Scene) -> None:
    keeper, person = scene.keeper, hashed(PEOPLE[1])
    if person not in scene.store.erased:
        with patch.object(erasure, "MOST_TOUCHED", 1):  # in parts: first the halves
            keeper.forget(person, lambda letter: letter.position.offset % 40 == 23, START)
    for unfinished in keeper.unfinished_erasures():
        keeper.finish_erasure(unfinished.number, START)


STAGES = [
    Stage("ingest", _ingest(40, day=0, script=[Deliver(6), Redeliver(4, 6), Fail("as scripted"), Deliver(2)])),
    Stage("cycle", _cycle),
    Stage("amend", _amend),
    Stage("back up", _back_up),
    Stage("ingest more", _ingest(60, day=1, script=[Deliver(6), Fail("as scripted"), Redeliver(3, 6)])),
    Stage("expire", _expire),
    Stage("forget", _forget),
    Stage("take many", _take_many),
    Stage("ingest again", _ingest(LAST, day=2)),
]


# --- played -------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """This process plays lives: quiet, without waits, with checkpoints as often as a short life needs."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    consume.backoff = lambda *_: 0.0
    for partition in PARTITIONS:
        for offset in range(LAST):
            record(partition, offset)  # drawn once, not in each life
    many()
    duckdb_store.QUIET_LOG = CHECKPOINT_AT // 4
    database_file.ROW_GROUP = LEAST_ROW_GROUP
    options = duckdb_database.duckdb_options
    duckdb_database.duckdb_options = lambda *arguments: {
        **options(*arguments),
        "checkpoint_threshold": f"{CHECKPOINT_AT}B",
    }


def begin_with_schema_1(folder: Path) -> None:
    """Where an earlier release left off: a store with its tables, and records of a topic of its own."""
    with duckdb.connect(str(folder / STORE)) as connection:
        connection.execute(SCHEMA_1.read_text())
        connection.execute("insert into meta values (1, 'the-store', 7)")
        connection.execute("insert into offsets values ('old', 0, 0, 300)")
        connection.execute(
            "insert into examples select o + 1, 'old', 0, o, 'old-' || o, md5(o::varchar), 'negative', 'old', 'train', "
            "timestamp '2026-02-01', timestamp '2026-02-01' from range(290) r(o)"
        )
        connection.execute(
            "insert into dead_letters select 'old', 0, o, 'not_json', '', null, 'x'::blob, timestamp '2026-02-01' "
            "from range(290, 296) r(o)"
        )
        connection.execute("insert into gaps values ('old', 0, 296, 300, 'retention')")


def opened(folder: Path) -> DuckdbStore:
    return DuckdbStore.open(folder / STORE, memory_limit=1 << 28, threads=1)


def live(
    folder: Path, store: DuckdbStore, witness: Witness, *, after_stage: Callable[[int], None] = lambda _: None
) -> None:
    """All stages. Raises what ends a learner: StoreError and the like."""
    witness.note("epoch", epoch(store))
    for number, stage in enumerate(STAGES):
        witness.note("began", number)
        _until_known(stage, Scene(store, witness, folder))
        witness.note("ended", number)
        after_stage(number)


def epoch(store: DuckdbStore) -> int:
    with store.database.cursor() as cursor:
        return int(cursor.execute("select epoch from meta").fetchone()[0])


def _until_known(stage: Stage, scene: Scene) -> None:
    """Somebody whose command ended in an unknown outcome looks, and gives it again."""
    for _ in range(5):
        try:
            return stage.play(scene)
        except (OutcomeUnknownError, StaleBatchError, SourceError):
            continue
    raise AssertionError(f"stage {stage.name!r} did not come through")
