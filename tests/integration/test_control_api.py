"""The control API over a real unix socket: reads, writes, refusals, and who may open it."""

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
from daemon.core.errors import ConfigError, ConflictError, NotFoundError, UnavailableError, UsageError
from daemon.core.states import Action
from daemon.runtime.health import Board
from daemon.runtime.http import served_on_socket
from daemon.testing.clock import ManualClock
from daemon.testing.registry import InMemoryRegistry
from daemon.testing.store import InMemoryStore
from tests.artefacts import MODEL, NOON, paper_run


class Learner:
    """What the API talks to, with two versions and what it asked the cycle for."""

    def __init__(self) -> None:
        self.store, self.registry, self.clock = InMemoryStore(), InMemoryRegistry(), ManualClock()
        self.board = Board(self.clock)
        self.runs_asked_for: list[str] = []
        self.cancelled = 0
        for number in (1, 2):
            run = paper_run(Path(f"run-{number}"))
            self.registry.add(run.spec, run.result, Path(), lineage=run.lineage, created_at=NOON)
        self.operations = Operations(
            model=MODEL,
            store=self.store,
            registry=self.registry,
            clock=self.clock,
            ask_for_run=self.runs_asked_for.append,
            cancel_run=self._cancel,
            policy_hash=lambda: "hash",
            changed=lambda: None,
            accept=lambda *asked: [str(asked)],
            let_ingest_go_on=lambda: self.store.put("ingest_paused", None),
            lock=threading.Lock(),
        )
        self.views = Views(
            MODEL,
            self.store,
            self.registry,
            self.board,
            lag=lambda: {"t[0]": 5},
            performance=lambda: None,
            label_delays=lambda: [1.0, 2.0, 3.0, 4.0],
        )

    def _cancel(self) -> None:
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
    assert learner.runs_asked_for == ["new labels", "asked for"]


@pytest.mark.parametrize(
    ("path", "body", "error", "sentence"),
    [
        ("/v1/promote", {"version": 9}, NotFoundError, "9"),
        ("/v1/promote", {"version": "two"}, UsageError, "'two'"),
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
