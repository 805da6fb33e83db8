"""What operators do to the data, with the commands they type, over a real socket and a real store."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.config import FieldNames, Splits
from daemon.control.api import Views, control_app
from daemon.control.data import DataOperations
from daemon.control.data_api import data_routes
from daemon.control.operations import Operations
from daemon.core.errors import (
    ConfigError,
    InputOutputError,
    LockedError,
    NotFoundError,
    SourceError,
    StoreError,
    UsageError,
)
from daemon.core.states import QuarantineReason, RejectReason, RunState, Split
from daemon.core.stream import (
    Advance,
    Amendment,
    Batch,
    DeadLetter,
    Example,
    Position,
    Quarantined,
    Record,
    TopicPartition,
)
from daemon.core.types import Run
from daemon.core.upkeep import Chosen, Retention
from daemon.ingest.assemble import assemble
from daemon.ingest.cut_letters import cut
from daemon.ingest.decode import Decoder
from daemon.ingest.redrive import LookUp, redriven
from daemon.policy.schema import RecordsPolicy
from daemon.runs.run_folder import erase_data
from daemon.runtime.health import Board
from daemon.runtime.http import served_on_socket
from daemon.runtime.subjects import SubjectKey
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.testing.clock import START, ManualClock
from daemon.testing.registry import InMemoryRegistry
from tests.artefacts import MODEL, paper_run
from tests.stores import break_next, flip_a_bit_of, snapshot

ZERO = TopicPartition("examples", 0)
KEY = SubjectKey(b"a key of the operator's")
SENTINEL = "someone@example.org"


@dataclass
class Learner:
    """The part of a learner that commands about data reach."""

    folder: Path
    labels: frozenset[str] = frozenset({"yes"})
    look_up: LookUp = lambda positions: ()
    forgotten: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = DuckdbStore.open(self.path, memory_limit=1 << 28, threads=1)
        self.registry, self.clock = InMemoryRegistry(), ManualClock()
        self.data = DataOperations(
            model=MODEL,
            store=self.store,
            keeper=DuckdbKeeper(self.store),
            registry=self.registry,
            clock=self.clock,
            policy_hash=lambda: "hash",
            redrive_letters=lambda letters: redriven(letters, self.decoder, lambda batch: batch, START, self.look_up),
            hash_of=KEY.hash_of,
            strings_of=lambda _: (),
            erase_run_data=lambda run_id: erase_data(self.folder / "runs" / run_id),
            cancel_run=lambda *_: None,
            forgotten=lambda: self.forgotten.append(1),
            lock=threading.Lock(),
        )

    @property
    def path(self) -> Path:
        return self.folder / "data" / "store.duckdb"

    @property
    def decoder(self) -> Decoder:
        fields = FieldNames(subject="person")
        return Decoder(
            fields, self.labels, RecordsPolicy(unknown_label="dead_letter"), Splits(), 1 << 20, hash_of=KEY.hash_of
        )

    def read(self, *values: bytes) -> None:
        """As ingest does."""
        offsets = self.store.next_offsets()
        first = offsets.get(ZERO, 0)
        records = [
            Record(Position("examples", 0, offset), START, None, value) for offset, value in enumerate(values, first)
        ]
        self.store.commit(assemble(records, offsets, self.decoder, START).batch)

    def put_aside(self, *examples: Example) -> None:
        first = examples[0].position.offset
        aside = [Quarantined(example, QuarantineReason.NEW_SOURCE, "a new source") for example in examples]
        advance = {ZERO: Advance(first or None, first + len(examples))}
        self.store.commit(Batch([], [], [], advance, quarantined=aside))

    @property
    def sound(self) -> bool:
        coverage = self.store.coverage()
        return coverage.lost == 0 and coverage.twice == 0


def record(number: int, *, label: str = "yes", person: str | None = None, text: str = "text") -> bytes:
    return json.dumps({"id": f"id-{number}", "text": text, "label": label, "person": person}).encode()


def example(offset: int, *, source: str = "source", label: str = "yes") -> Example:
    return Example(Position("examples", 0, offset), f"id-{offset}", "text", label, START, START, source, Split.TRAIN)


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    learner = Learner(tmp_path)
    views = Views(
        MODEL,
        learner.store,
        learner.registry,
        Board(learner.clock),
        servers=list,
        lag=dict,
        performance=lambda: None,
        label_delays=list,
    )
    operations = Operations(
        model=MODEL,
        store=learner.store,
        registry=learner.registry,
        clock=learner.clock,
        cancel_run=lambda *_: None,
        policy_hash=lambda: "hash",
        changed=lambda: None,
        acceptance=lambda *_: Batch([], [], [], {}),
        accept=lambda _: None,
        let_ingest_go_on=lambda: None,
        lock=threading.Lock(),
    )
    with served_on_socket(control_app(views, operations, data_routes(learner.data)), tmp_path / "c.sock"):
        yield learner
    learner.store.close()


@pytest.fixture
def command(tmp_path: Path) -> "Command":
    key = tmp_path / "key"
    key.write_bytes(KEY.key + b"\n")
    config = {
        "kafka": {"fields": {"subject": "person"}},
        "store": {"path": str(tmp_path / "data" / "store.duckdb"), "subject_key_file": str(key)},
        "control": {"socket": str(tmp_path / "c.sock")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return Command(tmp_path / "config.yaml")


@dataclass
class Command:
    config: Path

    def __call__(self, *words: str) -> Any:
        """Its answer as JSON. Raises what it ended with."""
        result = CliRunner().invoke(app, [*words, "--config", str(self.config), "--json"], catch_exceptions=True)
        if result.exception:
            raise result.exception
        return json.loads(result.stdout[re.search(r"^\{", result.stdout, re.MULTILINE).start() :])  # behind log lines

    def shown(self, *words: str) -> str:
        return CliRunner().invoke(app, [*words, "--config", str(self.config)]).stdout


# --- quarantine ---------------------------------------------------------------------------------------------------


def test_an_operator_releases_and_drops_what_was_put_aside(learner: Learner, command: Command) -> None:
    sources = ("good", "good", "bad", "odd")
    learner.put_aside(*(example(offset, source=source) for offset, source in enumerate(sources)))
    listed = command("quarantine", "list")
    assert (listed["total"], listed["by_reason"]) == (4, {"new_source": 4})
    assert [one["id"] for one in command("quarantine", "list", "--source", "bad")["quarantined"]] == ["id-2"]
    assert "examples[0]@3" in command.shown("quarantine", "list")
    assert command("quarantine", "release", "--source", "good") == {"released": 2}
    assert command("quarantine", "drop", "--position", "examples[0]@2") == {"dropped": 1}
    counts = learner.store.counts()
    assert (counts.examples, counts.quarantined, counts.skipped_offsets) == (2, 1, 1)
    assert learner.sound
    dropped, released = command("decisions")["decisions"]
    assert (released["decision"]["action"], released["decision"]["by"]) == ("release", "operator")
    assert released["decision"]["reasons"] == ["operator: quarantine, source good"]
    assert dropped["decision"]["reasons"] == ["operator: quarantine, position examples[0]@2"]
    assert dropped["decision"]["evidence"] == {"of": "quarantine", "position": "examples[0]@2"}
    assert dropped["acted_at"] and released["acted_at"]


def test_brokers_that_do_not_answer_are_told_once_what_can_be_is_redriven(learner: Learner) -> None:
    def silent(positions: object) -> list[Record]:
        raise SourceError("brokers do not answer")

    learner.read(record(0, label="odd"))
    at = Position("examples", 0, 1)
    letters = cut([DeadLetter(at, RejectReason.NOT_JSON, "no JSON", None, b"x" * 100_000, START)])
    learner.store.commit(Batch([], letters, [], {ZERO: Advance(1, 2)}))
    learner.labels, learner.look_up = frozenset({"yes", "odd"}), silent
    with pytest.raises(SourceError, match="brokers do not answer; dead letters redriven before that: 1"):
        learner.data.redrive(Chosen())
    counts = learner.store.counts()
    assert (counts.examples, counts.dead_letters) == (1, 1)
    assert learner.store.decisions(1)[0].acted_at
    assert learner.sound


@pytest.mark.parametrize("durable", [True, False])
def test_a_decision_whose_commit_failed_is_known_as_not_carried_out_and_is_given_again(
    learner: Learner, command: Command, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    learner.put_aside(example(0), example(1))
    amend = learner.store.amend

    def amend_badly(amendment: Amendment) -> None:
        break_next(monkeypatch, "_commit", durable=durable)
        amend(amendment)

    with monkeypatch.context() as broken:
        broken.setattr(learner.store, "amend", amend_badly)
        with pytest.raises(InputOutputError, match="Give the command again"):
            command("quarantine", "release", "--reason", "new_source")
    (interrupted,) = command("decisions")["decisions"]
    assert interrupted["acted_at"] is None
    assert command("quarantine", "release", "--reason", "new_source") == {"released": 0 if durable else 2}
    assert (learner.store.counts().examples, learner.sound) == (2, True)


def test_where_there_is_nothing_to_decide_on_nothing_was_decided(learner: Learner, command: Command) -> None:
    learner.put_aside(example(0))
    assert command("quarantine", "drop", "--source", "nobody") == {"dropped": 0}
    assert command("dead-letters", "redrive")["still_dead"] == 0
    assert command("decisions")["decisions"] == []


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (("quarantine", "release"), UsageError, "say which"),
        (("quarantine", "drop", "--position", "nowhere"), UsageError, r"topic\[partition\]@offset"),
        (("quarantine", "drop", "--position", "examples[0]@99"), NotFoundError, "99"),
        (("quarantine", "drop", "--reason", "nonsense"), UsageError, "nonsense"),
        (("dead-letters", "drop"), UsageError, "say which"),
        (("dead-letters", "show", "examples[0]@99"), NotFoundError, "99"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    learner: Learner, command: Command, words: Sequence[str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        command(*words)


@pytest.mark.parametrize("wrong", [["a"], {"a": 1}, 7, ""])
@pytest.mark.parametrize("name", ["label", "source", "reason", "position"])
def test_what_is_chosen_by_is_text(learner: Learner, tmp_path: Path, name: str, wrong: Any) -> None:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(tmp_path / "c.sock")), base_url="http://learner"
    ) as control:
        answer = control.post("/v1/quarantine/drop", json={name: wrong})
    assert (answer.status_code, answer.json()["error"]) == (400, f"say the {name}, as text; got {wrong!r}")


# --- dead letters -------------------------------------------------------------------------------------------------


def test_all_dead_letters_are_looked_at_however_few_large_ones_fit_together(
    learner: Learner, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner.read(*[b"not JSON"] * 5)
    find = DuckdbKeeper.find_dead_letters
    monkeypatch.setattr(DuckdbKeeper, "find_dead_letters", lambda *chosen, **how: find(*chosen, **{**how, "limit": 1}))
    monkeypatch.setattr("daemon.control.data.MOST", 2000)
    assert command("dead-letters", "drop", "--reason", "not_json") == {"dropped": 5}
    assert learner.sound


def test_dead_letters_become_examples_once_what_was_wrong_is_mended(learner: Learner, command: Command) -> None:
    learner.read(record(0), record(1, label="maybe"), b"not json", record(3, label="maybe"))
    assert command("dead-letters", "list")["total"] == command("dead-letters")["total"] == 3
    assert json.loads(command("dead-letters", "show", "examples[0]@1")["value"])["id"] == "id-1"
    assert command("dead-letters", "redrive")["still_dead"] == 3
    learner.labels = frozenset({"yes", "maybe"})
    became = command("dead-letters", "redrive")
    assert (became["examples"], became["still_dead"]) == (2, 1)
    assert [each["reason"] for each in command("dead-letters", "list", "--reason", "not_json")["dead_letters"]] == [
        "not_json"
    ]
    assert command("dead-letters", "list", "--reason", "too_big")["dead_letters"] == []
    assert command("dead-letters", "drop", "--reason", "not_json") == {"dropped": 1}
    counts = learner.store.counts()
    assert (counts.examples, counts.dead_letters, counts.skipped_offsets) == (3, 0, 1)
    assert learner.sound
    decided = [stored["decision"] for stored in reversed(command("decisions")["decisions"])]
    assert [(decision["action"], *decision["reasons"]) for decision in decided] == [
        ("redrive", "operator: dead letters, all"),
        ("redrive", "operator: dead letters, all"),
        ("drop", "operator: dead letters, reason not_json"),
    ]


# --- copies and checks --------------------------------------------------------------------------------------------


def test_a_backup_is_taken_while_learning_and_restored_when_stopped(
    learner: Learner, command: Command, tmp_path: Path
) -> None:
    learner.read(*(record(number) for number in range(20)))
    folder = command("backup", str(tmp_path / "backups"))["folder"]
    learner.read(*(record(number) for number in range(20, 30)))
    with pytest.raises(LockedError):
        command("restore", folder)
    learner.store.close()
    answer = command("restore", folder)
    assert (answer["examples"], Path(answer["kept"]).exists()) == (20, True)
    again = DuckdbStore.open(learner.path, memory_limit=1 << 28, threads=1)
    assert (again.counts().examples, again.next_offsets()) == (20, {ZERO: 20})
    again.close()


def test_analysts_get_their_files(learner: Learner, command: Command, tmp_path: Path) -> None:
    learner.read(record(0), record(1))
    files = command("snapshot", "export", str(tmp_path / "out"))["files"]
    assert str(tmp_path / "out" / "examples.parquet") in files
    assert pq.read_table(tmp_path / "out" / "examples.parquet").num_rows == 2
    command("snapshot", "export", str(tmp_path / "out"), "--format", "duckdb")
    assert (tmp_path / "out" / "store.duckdb").is_file()


def test_the_doctor_looks_at_a_store_in_use_and_at_one_that_is_damaged(learner: Learner, command: Command) -> None:
    learner.read(*(record(number, text=f"{SENTINEL} {number}") for number in range(2000)))
    assert all(finding["ok"] for finding in command("doctor")["findings"])
    assert "coverage" in command.shown("doctor")


def test_the_doctor_finds_damage_without_a_learner(command: Command, tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    learner.read(*(record(number, text=f"{SENTINEL} {number}") for number in range(20)))
    learner.store.close()
    assert all(finding["ok"] for finding in command("doctor")["findings"])
    flip_a_bit_of(learner.path, "examples", "text")
    with pytest.raises(StoreError, match="examples"):
        command("doctor")
    assert "relearnd restore" in " ".join(command.shown("doctor").split())


# --- forgetting ---------------------------------------------------------------------------------------------------


def test_forgetting_leaves_no_byte_and_names_every_version_that_saw_the_person(
    learner: Learner, command: Command, tmp_path: Path
) -> None:
    learner.read(
        record(0),
        record(1, person=SENTINEL, text=f"I am {SENTINEL}"),
        record(2, person="somebody else"),
        record(3, person=SENTINEL, label=f"label of {SENTINEL}"),
        b'{"person": "' + SENTINEL.encode(),
        json.dumps({"person": "somebody else", "text": SENTINEL}).encode(),
    )
    runs = [paper_run(tmp_path / "paper" / "run-1"), paper_run(tmp_path / "paper" / "run-2")]
    for run in runs:
        run_id = run.lineage.run_id
        learner.store.save_run(Run(run_id, RunState.FINISHED, START, [], None, 9))
        learner.registry.add(run.spec, run.result, Path(), lineage=run.lineage, created_at=START)
    first = runs[0].lineage.run_id
    snapshot(learner.store, tmp_path / "runs" / first / "data", first, cut=2)
    assert command("models", "show", "1", "--data")["run_id"] == first
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SENTINEL.encode() in everything

    answer = command("forget", "--subject", SENTINEL)

    assert answer["erased"] == {"examples": 1, "dead_letters": 3, "quarantined": 0, "halves": 0}
    assert answer["runs"] == [first]
    assert 1 in answer["versions"]
    assert learner.forgotten == [1]
    assert learner.sound
    learner.read(record(9, person=SENTINEL))
    assert learner.store.counts().examples == 2
    again = command("forget", "--subject", SENTINEL)
    assert (again["runs"], again["versions"]) == (answer["runs"], answer["versions"]), "what saw them is told again"
    learner.store.close()
    mine = SENTINEL.encode()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and mine in path.read_bytes()]
    assert [path.name for path in left] == []


def test_who_expired_before_they_were_forgotten_is_erased_from_runs_and_their_versions_are_named(
    learner: Learner, command: Command, tmp_path: Path
) -> None:
    learner.read(record(0, person=SENTINEL, text=f"I am {SENTINEL}"), record(1), record(2, person="somebody else"))
    run = paper_run(tmp_path / "paper" / "run-1")
    run_id = run.lineage.run_id
    learner.store.save_run(Run(run_id, RunState.FINISHED, START, [], None, 9))
    learner.registry.add(run.spec, run.result, Path(), lineage=run.lineage, created_at=START)
    data = tmp_path / "runs" / run_id / "data"
    snapshot(learner.store, data, run_id, cut=3)
    keep_two = Retention(None, 2, keep_waits=timedelta(days=1), keep_details=timedelta(days=1))
    assert learner.data.keeper.expire(keep_two, START).examples == 1
    assert SENTINEL in str(pq.read_table(data / "train.parquet")["text"])

    answer = command("forget", "--subject", SENTINEL)

    assert (answer["runs"], answer["versions"]) == ([run_id], [1])
    assert not data.exists()
    assert command("forget", "--subject", "nobody")["versions"] == []


def test_older_copies_of_the_store_are_told_because_nobody_is_erased_from_them(
    learner: Learner, command: Command, tmp_path: Path
) -> None:
    learner.read(record(0, person=SENTINEL))
    (tmp_path / "data" / "store.duckdb.schema-1").write_bytes(b"of an earlier release")
    assert command("forget", "--subject", SENTINEL)["older_copies"] == ["store.duckdb.schema-1"]


def test_a_restore_that_forgets_again_says_what_is_still_to_do(
    learner: Learner, command: Command, tmp_path: Path
) -> None:
    learner.read(record(0, person=SENTINEL), record(1))
    folder = command("backup", str(tmp_path / "backups"))["folder"]
    command("forget", "--subject", SENTINEL)
    learner.store.close()
    answer = command("restore", folder)
    assert answer["forgotten_again"] == 1
    assert "relearnd forget" in answer["to_do"]


def test_without_a_key_nobody_can_be_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        SubjectKey.read(tmp_path / "none")
    (tmp_path / "short").write_text("short\n")
    with pytest.raises(ConfigError, match="5 bytes"):
        SubjectKey.read(tmp_path / "short")
