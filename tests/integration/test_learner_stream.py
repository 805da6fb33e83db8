"""The real `relearnd learn` on a stream that goes wrong: what operators see, what they say, and how it ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.control.client import ControlClient
from daemon.core.errors import UnavailableError
from daemon.demo.brokers import Broker, create_topic
from tests.conftest import APACHE_KAFKA
from tests.integration.test_kafka_logs import examples, recreate
from tests.integration.test_kafka_to_store import produce
from tests.integration.test_outbox import copies
from tests.secured import CANARY

LIMIT = 60.0  # seconds


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    def write(**kafka: Any) -> Path:
        policy = tmp_path / "policy.yaml"
        policy.write_text(yaml.safe_dump({"triggers": {"bootstrap": {"min_examples": 100_000}}}))
        path = tmp_path / "config.yaml"
        settings = {
            "policy": str(policy),
            "kafka": {"poll_timeout": "100ms", "group_id": uuid.uuid4().hex, **kafka},
            "store": {"path": str(tmp_path / "store.duckdb")},
            "registry": {"path": str(tmp_path / "registry")},
            "runs": {"path": str(tmp_path / "runs")},
            "control": {"socket": str(tmp_path / "control.sock")},
            "metrics": {"port": 0},
        }
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "daemon", *words]


@contextmanager
def learning(config: Path) -> Iterator[ControlClient]:
    """While the learner runs; it must end well when it is asked to."""
    process = subprocess.Popen(command("learn", "--config", str(config)))
    try:
        yield ControlClient(config.with_name("control.sock"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()


def component(client: ControlClient, name: str) -> dict[str, str]:
    return client.get("/v1/status")["components"].get(name, {"state": "not told yet"})


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except UnavailableError:
            pass
        time.sleep(0.2)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_dead_letters_are_copied_and_a_new_log_is_read_when_an_operator_says_so(
    broker: Broker, topic: str, config: Callable[..., Path]
) -> None:
    letters = f"letters-{uuid.uuid4().hex}"
    create_topic(broker, letters, partitions=1)
    path = config(bootstrap_servers=broker.bootstrap_servers, topics=[topic], dead_letter_topic=letters)
    produce(broker, topic, [*examples(0, 28), b"not JSON", b"\xff"])
    with learning(path) as client:
        wait_for(lambda: client.get("/v1/status")["stream"]["examples"] == 28)
        assert {record.value for record in copies(broker, letters, 2)} == {b"not JSON", b"\xff"}
        wait_for(lambda: component(client, "dead_letter_topic")["state"] == "ok")
    recreate(broker, topic)
    produce(broker, topic, examples(100, 6))
    with learning(path) as client:
        wait_for(lambda: component(client, "ingest")["state"] == "degraded")
        assert "accept-log" in component(client, "ingest")["detail"]
        subprocess.run(command("accept-log", topic, "--config", str(path), "--reason", "meant"), check=True)
        wait_for(lambda: client.get("/v1/status")["stream"]["examples"] == 34)
        wait_for(lambda: component(client, "ingest")["state"] == "ok")


@pytest.mark.kafka
def test_a_wrong_password_ends_the_learner_with_78_and_shows_no_secret(
    cluster: Broker, tmp_path: Path, config: Callable[..., Path]
) -> None:
    password = tmp_path / "password"
    password.write_text(f"wrong-{CANARY}")
    security = {
        "protocol": "SASL_PLAINTEXT",
        "mechanism": "SCRAM-SHA-512",
        "username": "reader",
        "password_file": str(password),
    }
    path = config(bootstrap_servers=[cluster.listeners["SASL"]], security=security)
    environment = {**os.environ, "RELEARND_LOG__LEVEL": "debug"}
    done = subprocess.run(
        command("learn", "--config", str(path)), capture_output=True, text=True, timeout=LIMIT, env=environment
    )
    assert done.returncode == 78, done.stderr
    assert "unauthorized" in done.stderr
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.parametrize("broker", [APACHE_KAFKA], indirect=True)
def test_a_run_that_an_operator_asked_for_begins_again_after_a_stop(
    broker: Broker, topic: str, config: Callable[..., Path]
) -> None:
    path = config(bootstrap_servers=broker.bootstrap_servers, topics=[topic])
    produce(broker, topic, examples(0, 28))

    def newest(client: ControlClient) -> Any:
        return next(iter(client.get("/v1/runs")["runs"]), {"state": "none yet"})

    with learning(path) as client:
        wait_for(lambda: client.get("/v1/status")["stream"]["examples"] == 28)
        client.post("/v1/retrain", reason="new labels")
        first = wait_for(lambda: newest(client) if newest(client)["state"] == "training" else None)
    with learning(path) as client:
        second = wait_for(lambda: newest(client) if newest(client)["id"] != first["id"] else None)
        assert (second["state"], second["triggers"]) == ("training", ["operator"])
        runs = {run["id"]: run for run in client.get("/v1/runs")["runs"]}
        assert (runs[first["id"]]["state"], runs[first["id"]]["detail"]) == ("cancelled", "the learner was stopped")
        client.post(f"/v1/runs/{second['id']}/cancel", reason="enough")
        wait_for(lambda: newest(client)["state"] == "cancelled")
