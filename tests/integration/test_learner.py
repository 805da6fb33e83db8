"""A whole learner, open, on a real broker: what its loops and its HTTP port say to one another."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kafka import KafkaProducer
from starlette.testclient import TestClient

from daemon.config import Config
from daemon.core.states import Action
from daemon.demo.brokers import Broker
from daemon.learner import Learner, open_learner

ENOUGH = 20  # train examples for a first version
LIMIT = 60.0  # seconds


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


def produce(broker: Broker, topic: str, numbers: range) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for number in numbers:
        value = {"id": f"e-{number}", "text": f"text {number}", "label": "yes", "split": "train"}
        producer.send(topic, json.dumps(value).encode())
    producer.flush()
    producer.close()


@contextmanager
def looping(learner: Learner) -> Iterator[None]:
    """Ingest and cycle loops on their threads, without the scheduler: nothing wakes the cycle but what comes in."""
    stop = threading.Event()
    loops = [threading.Thread(target=loop, args=(stop, lambda: None)) for loop in (learner.ingest.run, learner.learn)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        stop.set()
        for loop in loops:
            loop.join()


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {LIMIT:g} s"
        time.sleep(0.05)


def test_enough_examples_for_a_first_version_wake_the_cycle_at_once(broker: Broker, topic: str, config: Config) -> None:
    with open_learner(config) as learner:
        learner.operations.pause("so that no worker starts")
        told_before = len(learner.store.decisions(99))
        with looping(learner):
            produce(broker, topic, range(ENOUGH - 1))
            wait_for("first examples", lambda: learner.store.counts().examples == ENOUGH - 1)
            learner.inbox.take(timeout=0)  # the pause itself wakes the cycle
            told = len(learner.store.decisions(99))
            produce(broker, topic, range(ENOUGH - 1, ENOUGH))
            wait_for("decision", lambda: len(learner.store.decisions(99)) > max(told, told_before))
        newest = learner.store.decisions(1)[0].decision
        assert newest.action is Action.WAIT
        assert any("paused" in reason for reason in newest.reasons)


def test_metrics_say_how_far_the_stream_is_read(broker: Broker, topic: str, config: Config) -> None:
    produce(broker, topic, range(5))
    with open_learner(config) as learner:
        wait_for("examples", lambda: learner.ingest.step() == 0 and learner.store.counts().examples == 5)
        text = TestClient(learner.health()).get("/metrics").text
    assert f'relearnd_consumer_lag{{partition="0",topic="{topic}"}} 0.0' in text
    assert "relearnd_examples_stored_total 5.0" in text
    assert "relearnd_champion_version 0.0" in text
