"""The control API over a real unix socket: reads, writes, refusals, and who may open it."""

import errno
import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.control.api import Views, control_app
from daemon.control.client import ControlClient
from daemon.control.operations import Operations
from daemon.core.errors import (
    ArtefactError,
    ConfigError,
    ConflictError,
    NotFoundError,
    RelearndError,
    StoreError,
    UnavailableError,
    UsageError,
)
from daemon.core.states import Action, RunState
from daemon.core.stream import Advance, Batch, TopicPartition
from daemon.core.types import Run
from daemon.runtime.health import Board
from daemon.runtime.http import served_on_socket
from daemon.testing.clock import ManualClock
from daemon.testing.registry import InMemoryRegistry
from daemon.testing.store import InMemoryStore
from tests.artefacts import MODEL, NOON, paper_run

ZERO = TopicPartition("tickets", 0)


class Learner:
    """What the API talks to, with two versions and what it asked the cycle for."""

    def __init__(self) -> None:
        self.store, self.registry, self.clock = InMemoryStore(), InMemoryRegistry(), ManualClock()
        self.board = Board(self.clock)
        self.refused_logs: dict[str, Batch] = {"tickets": Batch([], [], [], {ZERO: Advance(None, 7)})}
        self.accepted: list[Batch] = []
        self.cancelled = 0
        for number in (1, 2):
            run = paper_run(Path(f"run-{number}"))
            self.registry.add(run.spec, run.result, Path(), lineage=run.lineage, created_at=NOON)
        self.operations = Operations(
            model=MODEL,
            store=self.store,
            registry=self.registry,
            clock=self.clock,
            cancel_run=self._cancel,
            policy_hash=lambda: "hash",
            changed=lambda: None,
            acceptance=lambda topic, partition, begin_at: self.refused_logs[topic],
            accept=self.accepted.append,
            let_ingest_go_on=lambda: self.store.put("ingest_paused", None),
            lock=threading.Lock(),
        )
        self.views = Views(
            MODEL,
            self.store,
            self.registry,
            self.board,
            servers=lambda: self.registry.servers(MODEL),
            lag=lambda: {"t[0]": 5},
            performance=lambda: None,
            label_delays=lambda: [1.0, 2.0, 3.0, 4.0],
        )

    def _cancel(self, run_id: str | None = None) -> None:
        self.cancelled += 1

    @property
    def actions(self) -> list[Action]:
        return [stored.decision.action for stored in reversed(self.store.decisions(99))]


@pytest.fixture
def learner() -> Learner:
    return Learner()


@pytest.fixture
def socket(tmp_path: Path, learner: Learner) -> Iterator[Path]:
    with served_on_socket(control_app(learner.views, learner.operations), tmp_path / "c.sock"):
        yield tmp_path / "c.sock"


@pytest.fixture
def client(socket: Path) -> Iterator[ControlClient]:
    client = ControlClient(socket)
    yield client
    client.close()


def test_only_the_owner_may_open_the_socket(socket: Path) -> None:
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


def test_every_read_answers(client: ControlClient) -> None:
    status = client.get("/v1/status")
    assert (status["model"], status["stage"], status["stream"]["lag"]) == (MODEL, "starting", 5)
    assert [version["number"] for version in client.get("/v1/models")["versions"]] == [1, 2]
    assert client.get("/v1/models/2")["number"] == 2
    assert client.get("/v1/decisions") == {"decisions": []}
    assert client.get("/v1/runs", limit=3) == {"runs": []}
    assert client.get("/v1/dead-letters") == {"total": 0, "dead_letters": []}
    assert client.get("/v1/coverage")["lost"] == 0


def test_promote_and_roll_back_move_the_aliases_and_are_stored_as_decisions(
    client: ControlClient, learner: Learner
) -> None:
    client.post("/v1/promote", version=1, reason="first")
    assert client.post("/v1/promote", version=2)["champion"] == 2
    back = client.post("/v1/rollback", reason="worse")
    assert (back["champion"], back["previous"]) == (1, None), "rolling back twice must not return to what was left"
    assert learner.actions == [Action.PROMOTE, Action.PROMOTE, Action.ROLL_BACK]
    newest = learner.store.decisions(1)[0]
    assert (newest.decision.by, newest.decision.reasons) == ("operator", ["operator: worse"])
    assert newest.acted_at is not None


def test_ingest_goes_on_when_an_operator_says_so_and_only_when_it_pauses(
    client: ControlClient, learner: Learner
) -> None:
    with pytest.raises(UsageError, match="ingest is not paused"):
        client.post("/v1/ingest/resume")
    learner.store.put("ingest_paused", {"since": "now", "reason": "too many were refused"})
    assert client.get("/v1/status")["stream"]["ingest_paused"]["reason"] == "too many were refused"
    client.post("/v1/ingest/resume", reason="mended")
    assert learner.store.get("ingest_paused") is None
    resumed = learner.store.decisions(9)
    assert [(one.decision.action, one.decision.reasons) for one in resumed] == [
        (Action.RESUME_INGEST, ["operator: mended"])
    ]


def test_a_log_is_accepted_by_a_decision_that_names_what(client: ControlClient, learner: Learner) -> None:
    answer = client.post("/v1/accept-log", topic="tickets", begin_at=7, reason="recreated on purpose")
    assert answer == {"accepted": ["tickets[0]"]}
    assert learner.accepted == [learner.refused_logs["tickets"]]
    newest = learner.store.decisions(1)[0]
    assert newest.decision.action is Action.ACCEPT_LOG
    assert newest.decision.reasons == ["operator: tickets[0] from offset 7; recreated on purpose"]
    assert newest.acted_at is not None


def test_a_run_is_cancelled_by_a_decision_with_its_reason(
    client: ControlClient, learner: Learner, socket: Path, tmp_path: Path
) -> None:
    learner.store.save_run(Run("run-7", RunState.TRAINING, NOON, ["drift"], None, 10))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"control": {"socket": str(socket)}}))
    result = CliRunner().invoke(app, ["runs", "cancel", "run-7", "--reason", "too slow", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert learner.cancelled == 1
    newest = learner.store.decisions(1)[0]
    assert (newest.decision.action, newest.decision.run_id) == (Action.CANCEL, "run-7")
    assert (newest.decision.reasons, newest.decision.by) == (["operator: too slow"], "operator")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/promote", {"version": 1}),
        ("/v1/retrain", {}),
        ("/v1/pause", {}),
        ("/v1/accept-log", {"topic": "tickets"}),
        ("/v1/ingest/resume", {}),
        ("/v1/runs/run-7/cancel", {}),
    ],
)
def test_every_decision_is_stored_before_it_is_acted_on(
    client: ControlClient, learner: Learner, path: str, body: dict[str, object]
) -> None:
    """Nothing can be stored, so nothing is done."""
    learner.store.save_run(Run("run-7", RunState.TRAINING, NOON, ["drift"], None, 10))
    learner.store.put("ingest_paused", {"reason": "too many were refused"})

    def full(_: object) -> int:
        raise StoreError("no space left")

    learner.store.record = full  # type: ignore[method-assign]
    with pytest.raises(RelearndError, match="no space left"):
        client.post(path, **body)
    assert learner.registry.aliases(MODEL).champion is None
    assert (learner.cancelled, learner.accepted, learner.store.get("paused")) == (0, [], None)
    assert learner.store.get("ingest_paused") is not None


def test_status_says_how_long_labels_take(client: ControlClient) -> None:
    assert client.get("/v1/status")["stream"]["label_delay"] == {"p50": 3.0, "p95": 4.0, "examples": 4}


def test_canary_and_shadow_as_typed_move_the_aliases_and_are_stored_as_decisions(
    client: ControlClient, learner: Learner, socket: Path, tmp_path: Path
) -> None:
    client.post("/v1/promote", version=1)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"control": {"socket": str(socket)}}))

    def typed(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--config", str(config)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    typed("canary", "2", "--share", "5%", "--reason", "try it")
    typed("shadow", "2")
    aliases = learner.registry.aliases(MODEL)
    assert (aliases.champion, aliases.canary, aliases.canary_share, aliases.shadow) == (1, 2, 0.05, 2)
    assert "5.0% of the requests" in typed("status")
    decision = learner.store.decisions(2)[1].decision
    assert (decision.action, decision.version, decision.by) == (Action.CANARY, 2, "operator")
    assert decision.reasons == ["operator: 5% of the requests; try it"]
    typed("canary", "off")
    typed("shadow", "off")
    aliases = learner.registry.aliases(MODEL)
    assert (aliases.canary, aliases.canary_share, aliases.shadow) == (None, 0.0, None)
    assert learner.actions[1:] == [Action.CANARY, Action.SHADOW, Action.CANARY, Action.SHADOW]
    for words, says in (
        (("canary", "2", "--share", "60%"), "at most 50%"),
        (("canary", "2", "--share", "5"), "--share"),
        (("canary", "1"), "is the champion"),
        (("shadow", "two"), "'two'"),
    ):
        with pytest.raises(UsageError, match=says):
            typed(*words)
    with pytest.raises(NotFoundError, match="9"):
        typed("shadow", "9")


def test_pause_cancels_the_run_and_refuses_new_ones_until_resumed(client: ControlClient, learner: Learner) -> None:
    client.post("/v1/retrain", reason="new labels")
    client.post("/v1/pause", reason="night")
    assert learner.cancelled == 1
    assert client.get("/v1/status")["paused"]["reason"] == "night"
    with pytest.raises(ConflictError, match="resume"):
        client.post("/v1/retrain")
    client.post("/v1/resume")
    client.post("/v1/retrain")
    asked = [one.decision for one in learner.store.decisions(9) if one.decision.action is Action.RETRAIN]
    assert [decision.reasons for decision in asked] == [["operator"], ["operator: new labels"]]
    assert [decision.evidence for decision in asked] == [{"request": "asked for"}, {"request": "new labels"}]
    assert [one.decision.action for one in learner.store.unacted()] == [Action.RETRAIN] * 2, "a cycle acts on them"


@pytest.mark.parametrize(
    ("path", "body", "error", "sentence"),
    [
        ("/v1/promote", {"version": 9}, NotFoundError, "9"),
        ("/v1/promote", {"version": "two"}, UsageError, "'two'"),
        ("/v1/promote", {"version": True}, UsageError, "as a number; got True"),
        ("/v1/promote", {"version": 1.0}, UsageError, "got 1.0"),
        ("/v1/promote", {}, UsageError, "got None"),
        ("/v1/rollback", {"version": True}, UsageError, "as a number; got True"),
        ("/v1/canary", {"version": True, "share": 0.1}, UsageError, "as a number; got True"),
        ("/v1/canary", {"version": 2, "share": True}, UsageError, "from 0 to 1; got True"),
        ("/v1/shadow", {"version": False}, UsageError, "as a number; got False"),
        ("/v1/accept-log", {"topic": "t", "partition": True}, UsageError, "partition is a whole number .* got True"),
        ("/v1/accept-log", {"topic": "t", "begin_at": True}, UsageError, "begin_at is a whole number .* got True"),
        ("/v1/accept-log", {"topic": "t", "begin_at": 1 << 63}, UsageError, "to 9223372036854775807; got 92233"),
        ("/v1/rollback", {"version": "two"}, UsageError, "'two'"),
        ("/v1/rollback", {}, UsageError, "no previous"),
        ("/v1/resume", {}, UsageError, "not paused"),
        ("/v1/runs/none/cancel", {}, NotFoundError, "none"),
        ("/v1/nothing", {}, NotFoundError, "404"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(
    client: ControlClient, path: str, body: dict[str, object], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        client.post(path, **body)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "true", "²", "1" * 5000, ""])
def test_a_limit_is_a_number_that_is_said(client: ControlClient, limit: str) -> None:
    with pytest.raises(UsageError, match="from 1 to 1000"):
        client.get("/v1/decisions", limit=limit)


@pytest.mark.parametrize(
    ("failure", "exit_code", "sentence"),
    [
        (
            OSError(errno.EIO, "Input/output error", "/disk/aliases.json"),
            74,
            "^/disk/aliases.json: Input/output error$",
        ),
        (OSError(errno.EMFILE, "Too many open files"), 74, "^Too many open files$"),
        (PermissionError(errno.EACCES, "Permission denied", "/disk"), 77, "^/disk: Permission denied$"),
        (OSError(errno.EROFS, "Read-only file system", "/disk"), 77, "Read-only"),
        (ArtefactError("aliases.json cannot be read"), 74, "cannot be read"),
        (ValueError("of our own"), 70, "ValueError"),
    ],
)
def test_what_fails_in_the_learner_has_its_exit_code_and_the_next_command_is_answered(
    client: ControlClient, learner: Learner, failure: Exception, exit_code: int, sentence: str
) -> None:
    def fails(_: str) -> None:
        raise failure

    learner.registry.versions = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(RelearndError, match=sentence) as raised:
        client.get("/v1/models")
    assert raised.value.exit_code == exit_code
    assert client.get("/v1/status")["model"] == MODEL


def test_a_name_that_is_no_text_is_refused(client: ControlClient) -> None:
    with pytest.raises(UsageError, match="not text"):
        client.post("/v1/pause", reason="\ud800")


def test_a_limit_has_limits(client: ControlClient) -> None:
    for limit in ("0", "1001", "many"):
        with pytest.raises(UsageError, match=limit):
            client.get("/v1/runs", limit=limit)


def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="relearnd learn"):
        ControlClient(tmp_path / "none.sock").get("/v1/status")


def test_a_path_too_long_for_a_socket_is_refused_with_its_length(tmp_path: Path, learner: Learner) -> None:
    path = tmp_path / ("x" * 120)
    with (
        pytest.raises(ConfigError, match=str(len(str(path)))),
        served_on_socket(control_app(learner.views, learner.operations), path),
    ):
        pass
