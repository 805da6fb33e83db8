"""A whole learner on a real broker: that its loops do the upkeep, and that a person stays forgotten when records come again."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from daemon.config import Config
from daemon.core.errors import ConfigError
from daemon.core.states import Action, RejectReason, Split
from daemon.core.stream import Advance, Batch, DeadLetter, Example, Position, TopicPartition
from daemon.demo.brokers import Broker
from daemon.ingest import kafka_source
from daemon.learner import open_learner
from daemon.runtime.inbox import Requests
from daemon.testing.clock import START
from tests.artefacts import paper_run
from tests.learning import LIMIT, looping, produce, wait_for

SENTINEL = "someone@example.org"


def config_of(broker: Broker, topic: str, folder: Path, **store: Any) -> Config:
    policy = folder / "policy.yaml"
    policy.write_text(yaml.safe_dump({"drift": {"observe_every": "1h"}}))
    (folder / "key").write_text("a key of the operator's")
    return Config.model_validate(
        {
            "policy": str(policy),
            "kafka": {
                "bootstrap_servers": broker.bootstrap_servers,
                "topics": [topic],
                "poll_timeout": "100ms",
                "fields": {"subject": "person"},
            },
            "store": {"path": str(folder / "store.duckdb"), "subject_key_file": str(folder / "key"), **store},
            "registry": {"path": str(folder / "registry")},
            "runs": {"path": str(folder / "runs")},
            "task": {"labels": ["yes"]},
        }
    )


def record(number: int, person: str | None = None, text: str | None = None) -> dict[str, Any]:
    return {"id": f"e-{number}", "text": text or f"text number {number}", "label": "yes", "person": person}


def test_retention_runs_by_itself_and_says_so(broker: Broker, topic: str, tmp_path: Path) -> None:
    produce(broker, topic, [record(number) for number in range(1200)])
    with open_learner(config_of(broker, topic, tmp_path, retention={"keep_examples": 1000})) as learner:
        with looping(learner):
            wait_for("all records", lambda: sum(learner.store.next_offsets().values()) == 1200)
            learner.housekeeping._next = 0.0
            wait_for("retention", lambda: learner.store.counts().examples == 1000)
        coverage = learner.store.coverage()
        assert (coverage.lost, coverage.twice, coverage.skipped_offsets) == (0, 0, 200)
        metrics = TestClient(learner.health()).get("/metrics").text
        assert 'relearnd_expired_total{kind="examples"} 200.0' in metrics
        assert 'relearnd_disk_free_ratio{folder="store"} 0.' in metrics
        status = TestClient(learner.control()).get("/v1/status").json()
        assert {"disk", "housekeeping"} <= status["components"].keys()


def test_a_full_disk_stops_ingest_and_room_lets_it_go_on(broker: Broker, topic: str, tmp_path: Path) -> None:
    full = {"warn_below": "100%", "stop_training_below": "100%", "stop_ingest_below": "100%"}
    produce(broker, topic, [record(number) for number in range(10)])
    with open_learner(config_of(broker, topic, tmp_path, disk=full)) as learner, looping(learner):
        wait_for("a look at the disk", lambda: learner.disk.stops_ingest)
        before = learner.store.counts().examples
        produce(broker, topic, [record(number) for number in range(10, 20)])
        time.sleep(1.0)
        assert learner.store.counts().examples in (before, 10), "at most the poll that was under way"
        assert learner.board.components["disk"].state == "degraded"
        learner.disk._free = lambda _: 2.0
        wait_for("the rest", lambda: learner.store.counts().examples == 20)


def test_a_run_of_hours_keeps_neither_the_disk_nor_what_is_due_from_being_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 1.0)  # ingest looks for brokers until it may stop
    config = config_of(Broker("external", ["127.0.0.1:1"]), "topic", tmp_path)
    with open_learner(config) as learner:
        trains, done = threading.Event(), threading.Event()

        def train(*_: object) -> None:
            trains.set()
            assert done.wait(LIMIT)

        learner.cycle.run = train  # type: ignore[method-assign, assignment]
        learner.inbox.observe()
        with looping(learner):
            assert trains.wait(LIMIT)
            learner.disk._free = lambda _: 0.001
            wait_for("a look at the disk", lambda: learner.disk.stops_ingest)
            learner.disk._free = lambda _: 0.5
            wait_for("another", lambda: not learner.disk.stops_ingest)
            assert learner.board.components["housekeeping"].state == "ok"
            done.set()


def test_a_disk_that_gets_full_ends_the_run_and_what_was_asked_for_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 1.0)
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\nexec sleep 600\n")
    worker.chmod(0o755)
    config = config_of(Broker("external", ["127.0.0.1:1"]), "topic", tmp_path)
    config = config.model_copy(update={"worker": config.worker.model_copy(update={"python": worker})})
    config.policy.write_text(
        yaml.safe_dump(
            {"drift": {"observe_every": "1h"}, "triggers": {"cooldown": "0s", "bootstrap": {"min_examples": 9999}}}
        )
    )
    with open_learner(config) as learner:
        learner.store.commit(Batch(examples(20), [], [], {TopicPartition("topic", 0): Advance(None, 20)}))

        def states() -> list[str]:
            return [run.state.value for run in learner.store.runs(9)]

        def working() -> bool:
            return (config.runs.path / learner.store.runs(1)[0].id / "worker.log").exists()

        with looping(learner):
            learner.operations.resume("")
            learner.operations.retrain("new labels")
            wait_for("a worker", lambda: states() == ["training"] and working())
            learner.disk._free = lambda _: 0.09
            wait_for("the end of the run", lambda: states() == ["cancelled"])
            time.sleep(1.0)
            assert states() == ["cancelled"], "none is begun without room"
            learner.disk._free = lambda _: 0.5
            wait_for("room", lambda: not learner.disk.stops_training)
            learner.inbox.observe()
            wait_for("another run", lambda: states() == ["training", "cancelled"])
            wait_for("its worker", working)
            learner.operations.pause("enough")
        first = learner.store.runs(9)[-1]
        assert first.detail.endswith("less than store.disk.stop_training_below (10%)")
        decided = [each.decision for each in learner.store.decisions(9) if each.decision.by == "disk"]
        assert [each.action for each in decided] == [Action.RETRAIN, Action.CANCEL]
        assert decided[1].reasons == [f"disk: {first.detail}"]
        assert not (config.runs.path / first.id / "data").exists()


def examples(count: int) -> list[Example]:
    return [
        Example(Position("topic", 0, n), f"e-{n}", f"text {n}", "yes", START, START, "s", Split.TRAIN)
        for n in range(count)
    ]


def test_a_person_stays_forgotten_when_their_records_come_again(broker: Broker, topic: str, tmp_path: Path) -> None:
    mine = [record(1, SENTINEL, f"I am {SENTINEL}"), record(2, SENTINEL, f"Again {SENTINEL}")]
    bad = {"person": SENTINEL, "text": SENTINEL}
    produce(broker, topic, [record(0), *mine, bad])
    with open_learner(config_of(broker, topic, tmp_path)) as learner:
        control = TestClient(learner.control())
        with looping(learner):
            wait_for("four records", lambda: sum(learner.store.next_offsets().values()) == 4)
            answer = control.post("/v1/forget", json={"subject": SENTINEL}).json()
            assert answer["erased"] == {"examples": 2, "dead_letters": 1, "quarantined": 0, "halves": 0}
            produce(broker, topic, [*mine, record(3)])
            wait_for("the replay", lambda: sum(learner.store.next_offsets().values()) == 7)
        assert learner.store.counts().examples == 2
        coverage = control.get("/v1/coverage").json()
        assert (coverage["lost"], coverage["twice"], coverage["skipped_offsets"]) == (0, 0, 5)
    found = [path.name for path in tmp_path.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()]
    assert found == []


def test_redriven_dead_letters_meet_the_policy_and_the_duplicates_of_today(tmp_path: Path) -> None:
    config = config_of(Broker("external", ["127.0.0.1:1"]), "topic", tmp_path)
    config.policy.write_text(yaml.safe_dump({"records": {"unknown_label": "dead_letter"}}))
    first, second = json.dumps({**record(0), "label": "maybe"}).encode(), json.dumps(record(1)).encode()
    letters = [
        DeadLetter(Position("topic", 0, offset), RejectReason.UNKNOWN_LABEL, "", None, value, START)
        for offset, value in enumerate([first, second, second, b"no json"])
    ]
    with open_learner(config) as learner:
        learner.store.commit(Batch([], letters, [], {TopicPartition("topic", 0): Advance(None, 4)}))
        control = TestClient(learner.control())
        became = control.post("/v1/dead-letters/redrive", json={"reason": "unknown_label"}).json()
        assert became == {"examples": 1, "quarantined": 0, "skipped": 1, "halves": 0, "still_dead": 2}
        config.policy.write_text(yaml.safe_dump({"records": {"unknown_label": "quarantine"}}))
        learner.follow_policy()
        became = control.post("/v1/dead-letters/redrive", json={}).json()
        assert became == {"examples": 0, "quarantined": 1, "skipped": 0, "halves": 0, "still_dead": 1}
        assert control.post("/v1/quarantine/release", json={"label": "maybe"}).json() == {"released": 1}
        assert learner.store.counts().by_label == {"yes": 1, "maybe": 1}
        coverage = learner.store.coverage()
        assert (coverage.lost, coverage.twice, coverage.dead_letters) == (0, 0, 1)


def test_the_anchor_goes_into_every_run_folder_and_is_refused_when_it_changed(tmp_path: Path) -> None:
    nowhere = Broker("external", ["127.0.0.1:1"])
    (tmp_path / "mine.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    config = config_of(nowhere, "topic", tmp_path)
    config = config.model_copy(update={"task": config.task.model_copy(update={"anchor": tmp_path / "mine.jsonl"})})
    with open_learner(config) as learner:
        spec = paper_run(tmp_path / "paper").spec
        (tmp_path / "runs" / spec.run_id / "data").mkdir(parents=True)
        folder = learner._prepare_folder(spec, learner.policy.current)
        assert (folder / "data" / "anchor.jsonl").read_bytes() == (tmp_path / "mine.jsonl").read_bytes()
        assert len(learner._subject().anchor_sha256) == 64
    (tmp_path / "mine.jsonl").write_text('{"text": "b", "label": "yes"}\n')
    with pytest.raises(ConfigError, match="somebody changed it"), open_learner(config):
        pass


def test_what_is_due_is_still_due_when_the_registry_can_be_read_again(tmp_path: Path) -> None:
    config = config_of(Broker("external", ["127.0.0.1:1"]), "topic", tmp_path)
    with open_learner(config) as learner:
        aliases = config.registry.path / "models" / config.model / "aliases.json"
        aliases.parent.mkdir(parents=True, exist_ok=True)
        aliases.write_bytes(b"half of")
        learner._run_cycle(Requests(schedule_due=True))
        assert learner.board.components["registry"].state == "failed"
        learner.inbox.observe()
        assert learner.inbox.take(timeout=0) == Requests(schedule_due=True)


def test_the_lag_of_a_partition_that_is_not_read_any_more_is_not_shown(tmp_path: Path) -> None:
    with open_learner(config_of(Broker("external", ["127.0.0.1:1"]), "topic", tmp_path)) as learner:
        scrape = TestClient(learner.health())
        for log in ("topic", "topic~2"):
            learner.ingest._lag = {TopicPartition(log, 0): 0}
            shown = [line for line in scrape.get("/metrics").text.splitlines() if "consumer_lag{" in line]
            assert shown == [f'relearnd_consumer_lag{{partition="0",topic="{log}"}} 0.0']


@pytest.mark.parametrize("missing", [True, False])
def test_people_are_not_stored_without_a_key(tmp_path: Path, missing: bool) -> None:
    config = {"kafka": {"fields": {"subject": "person"}}, "store": {} if missing else {"subject_key_file": "key"}}
    if missing:
        with pytest.raises(ValueError, match="subject_key_file"):
            Config.model_validate(config)
    else:
        Config.model_validate(config)
