"""What a server refuses, the learner hears: a real server process, a whole learner and its control socket between them."""

import time
from pathlib import Path

import pytest
import yaml

from daemon.config import Config
from daemon.control.client import ControlClient
from daemon.demo.brokers import Broker
from daemon.learner import open_learner
from daemon.runtime.http import served_on_socket
from tests.artefacts import MODEL, add_version, finished_run, promote, spoil_golden
from tests.learning import looping, wait_for
from tests.serving import running, with_champion


@pytest.fixture
def config(broker: Broker, topic: str, tmp_path: Path) -> Config:
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({"drift": {"observe_every": "1h"}, "rollout": {"on_refusal": "roll_back"}}))
    return Config.model_validate(
        {
            "model": MODEL,
            "policy": str(policy),
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topics": [topic], "poll_timeout": "100ms"},
            "store": {"path": str(tmp_path / "store.duckdb")},
            "registry": {"path": str(tmp_path / "registry")},
            "runs": {"path": str(tmp_path / "runs")},
            "control": {"socket": str(tmp_path / "control")},
        }
    )


def test_a_champion_that_every_server_refuses_is_shown_and_rolled_back_with_the_reason(
    config: Config, tmp_path: Path
) -> None:
    with open_learner(config) as learner, served_on_socket(learner.control(), config.control.socket):
        control = ControlClient(config.control.socket)

        def servers() -> list[tuple[int, list[int]]]:
            return [
                (server["served"], [refusal["version"] for refusal in server["refused"]])
                for server in control.get("/v1/status")["servers"]
            ]

        add_version(learner.registry, tmp_path / "run-1", seed=1)
        promote(learner.registry, 1)
        with running(tmp_path):
            wait_for("a server's report", lambda: servers() == [(1, [])])
            run = finished_run(tmp_path / "run-2", seed=2)
            spoil_golden(run)
            learner.registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=run.spec.created_at)
            promote(learner.registry, 2)
            wait_for("the refusal", lambda: servers() == [(1, [2])])
            learner.readings.take()
            assert b"relearnd_servers_refusing 1.0" in learner.metrics.render()
            with looping(learner):
                wait_for("the roll back", lambda: control.get("/v1/status")["aliases"]["champion"] == 1)
            decisions = [stored["decision"] for stored in control.get("/v1/decisions")["decisions"]]
            rolled_back = next(decision for decision in decisions if decision["action"] == "roll_back")
            assert rolled_back["version"] == 1
            assert "every server refuses champion 2" in rolled_back["reasons"][0]
            assert "golden" in rolled_back["reasons"][0]
        assert servers() == [], "a server that stops takes its report away"


def test_a_server_that_may_not_write_to_the_registry_serves_all_the_same_and_says_so_once(tmp_path: Path) -> None:
    registry = with_champion(tmp_path)
    (tmp_path / "registry" / "servers").rmdir()
    (tmp_path / "registry" / "servers").write_bytes(b"")
    with running(tmp_path) as server:
        promote(registry, 1)
        wait_for("word of it", lambda: "not_reported" in server.log.read_text())
        time.sleep(0.2)
        assert server.log.read_text().count("not_reported") == 1
