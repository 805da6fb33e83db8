"""A whole learner, open, on a real broker: what its loops and its HTTP port say to one another."""

from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from daemon.config import Config
from daemon.core.states import Action
from daemon.demo.brokers import Broker
from daemon.learner import open_learner
from tests.learning import looping, produce, wait_for

ENOUGH = 20  # train examples for a first version


@pytest.fixture
def config(broker: Broker, topic: str, tmp_path: Path) -> Config:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        yaml.safe_dump({"drift": {"observe_every": "1h"}, "triggers": {"bootstrap": {"min_examples": ENOUGH}}})
    )
    return Config.model_validate(
        {
            "policy": str(policy),
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topics": [topic], "poll_timeout": "100ms"},
            "store": {"path": str(tmp_path / "store.duckdb")},
            "registry": {"path": str(tmp_path / "registry")},
            "runs": {"path": str(tmp_path / "runs")},
        }
    )


def records(numbers: range) -> list[dict[str, str]]:
    return [{"id": f"e-{n}", "text": f"text {n}", "label": "yes", "split": "train"} for n in numbers]


def test_enough_examples_for_a_first_version_wake_the_cycle_at_once(broker: Broker, topic: str, config: Config) -> None:
    with open_learner(config) as learner:
        with looping(learner):
            produce(broker, topic, records(range(ENOUGH - 1)))
            wait_for("first examples", lambda: learner.store.counts().examples == ENOUGH - 1)
            wait_for("the cycle that the pause woke", lambda: len(learner.store.decisions(99)) == 2)
            produce(broker, topic, records(range(ENOUGH - 1, ENOUGH)))
            wait_for("decision", lambda: len(learner.store.decisions(99)) == 3)
        newest = learner.store.decisions(1)[0].decision
        assert newest.action is Action.WAIT
        assert any("paused" in reason for reason in newest.reasons)


def test_metrics_say_how_far_the_stream_is_read(broker: Broker, topic: str, config: Config) -> None:
    produce(broker, topic, records(range(5)))
    with open_learner(config) as learner:
        wait_for("examples", lambda: learner.ingest.step() == 0 and learner.store.counts().examples == 5)
        text = TestClient(learner.health()).get("/metrics").text
    assert f'relearnd_consumer_lag{{partition="0",topic="{topic}"}} 0.0' in text
    assert "relearnd_examples_stored_total 5.0" in text
    assert "relearnd_champion_version 0.0" in text
