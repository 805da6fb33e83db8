"""Answers and labels from a real server to a file and to real Kafka; and texts nowhere else."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from tritonclient.utils import InferenceServerException

from daemon.config import Config
from daemon.core.stream import StoredExample
from daemon.demo.brokers import Broker, create_topic
from daemon.learner import open_learner
from tests.artefacts import MODEL
from tests.serving import PATIENCE, Running, running, with_champion

CANARY = "good canary-of-the-logs-4711"


def ask_all(server: Running) -> None:
    """One text, two texts, gRPC; then labels for them."""
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/predict", json={"text": CANARY, "id": "one"}).headers["X-Request-Id"] == "one"
        assert client.post("/predict", json={"texts": ["good", "bad"], "id": "two"}).status_code == 200
        tensor = tritonclient.grpc.InferInput("text", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"late"], dtype=np.object_))
        with tritonclient.grpc.InferenceServerClient(server.grpc) as grpc:
            grpc.infer(MODEL, [tensor], request_id="three")
        assert client.post("/feedback", json={"id": "one", "label": "up"}).json() == {"taken": 1}
        labels = [{"id": "two-0", "label": "up"}, {"id": "two-1", "label": "down"}]
        assert client.post("/feedback", json={"labels": labels}).json() == {"taken": 2}


def provoke_faults(server: Running) -> None:
    """A bug on each of the two ways to ask; both go into the log with their tracebacks."""
    assert httpx.post(f"{server.url}/predict", json={"text": f"{CANARY}!"}).status_code == 500
    tensor = tritonclient.grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([f"{CANARY}!".encode()], dtype=np.object_))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as grpc, pytest.raises(InferenceServerException):
        grpc.infer(MODEL, [tensor])


def assert_complete(predictions: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
    by_id = {record["id"]: record for record in predictions}
    assert {id: record["text"] for id, record in by_id.items()} == {
        "one": CANARY,
        "two-0": "good",
        "two-1": "bad",
        "three": "late",
    }
    one = by_id["one"]
    assert set(one) == {"id", "model", "version", "text", "prediction", "confidence", "occurred_at"}
    assert (one["model"], one["version"]) == (MODEL, 1)
    assert [(record["id"], record["label"]) for record in labels] == [("one", "up"), ("two-0", "up"), ("two-1", "down")]
    assert all(set(record) == {"id", "label", "occurred_at"} for record in labels)


BROKEN = f"""
from daemon.serve.ort_loader import Servable
def encode(servable, texts, sound=Servable.encode):
    if "{CANARY}!" in texts:
        raise ZeroDivisionError
    return sound(servable, texts)
Servable.encode = encode
"""


@pytest.mark.parametrize("format", ["text", "json"])
def test_to_a_file_and_never_into_the_log(format: str, tmp_path: Path) -> None:
    with_champion(tmp_path)
    folder = tmp_path / "feedback"
    feedback = {"sink": "file", "path": str(folder)}
    with running(tmp_path, first=BROKEN, log=format, grpc_port=0, feedback=feedback) as server:
        ask_all(server)
        provoke_faults(server)
        with httpx.Client(base_url=server.url) as client:
            for broken in (f'{{"text": "{CANARY}"', f'{{"text": ["{CANARY}"]}}', f'{{"{CANARY}": 1}}'):
                assert client.post("/predict", content=broken).status_code == 400
            assert client.post(f"/{CANARY}", content=CANARY).status_code == 404
            assert client.post("/predict", json={"text": CANARY * 100_000}).status_code == 413
            assert client.post("/predict", json={"text": "good", "id": CANARY}).status_code == 400
    predictions, labels = (
        [json.loads(line) for line in (folder / f"{kind}s.jsonl").read_text().splitlines()]
        for kind in ("prediction", "label")
    )
    assert_complete(predictions, labels)
    log = server.log.read_text()
    assert "canary" not in log.casefold()
    assert log.count("ZeroDivisionError") >= 2, "both faults are in the log"


@pytest.fixture
def topics(broker: Broker) -> Iterator[tuple[str, str]]:
    suffix = str(time.time_ns())
    names = (f"predictions-{suffix}", f"labels-{suffix}")
    for name in names:
        create_topic(broker, name, partitions=3)
    yield names


def test_through_kafka_answers_and_labels_become_examples(
    tmp_path: Path, broker: Broker, topics: tuple[str, str]
) -> None:
    with_champion(tmp_path)
    kafka = {"bootstrap_servers": list(broker.bootstrap_servers)}
    feedback = {"sink": "kafka", "topic": topics[0], "labels_topic": topics[1]}
    with running(tmp_path, kafka=kafka, grpc_port=0, feedback=feedback) as server:
        ask_all(server)
    predictions, labels = read_whole(broker, topics[0], 4), read_whole(broker, topics[1], 3)
    order = ["one", "two-0", "two-1"]  # of labels that came through three partitions
    assert_complete(
        [value for _, value in predictions],
        sorted((value for _, value in labels), key=lambda each: order.index(each["id"])),
    )
    assert all(key.decode() == value["id"] for key, value in predictions + labels)
    examples = {each.id: (each.text, each.label) for each in learnt(tmp_path, broker, topics)}
    assert examples == {"one": (CANARY, "up"), "two-0": ("good", "up"), "two-1": ("bad", "down")}


def learnt(folder: Path, broker: Broker, topics: tuple[str, str]) -> Sequence[StoredExample]:
    """What a learner makes of both topics."""
    config = {
        "policy": str(Path(__file__).parents[2] / "policies" / "default.yaml"),
        "kafka": {
            "bootstrap_servers": broker.bootstrap_servers,
            "topics": [f"examples-of-{topics[0]}"],
            "poll_timeout": "100ms",
            "predictions_topic": topics[0],
            "labels_topic": topics[1],
        },
        "task": {"labels": ["up", "down"]},
        "store": {"path": str(folder / "store.duckdb")},
        "registry": {"path": str(folder / "learners-registry")},
        "runs": {"path": str(folder / "runs")},
    }
    with open_learner(Config.model_validate(config)) as learner:
        deadline = time.monotonic() + PATIENCE
        while sum(learner.store.next_offsets().values()) < 7 and time.monotonic() < deadline:
            learner.ingest.step()
        assert learner.store.coverage().halves == 4, "the first of each pair, and an answer without a label"
        return learner.store.window(after=0, up_to=1000, limit=1000)


def read_whole(broker: Broker, topic: str, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    consumer = KafkaConsumer(
        bootstrap_servers=list(broker.bootstrap_servers), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        consumer.assign([KafkaPartition(topic, number) for number in range(3)])
        found: list[Any] = []
        deadline = time.monotonic() + PATIENCE
        while len(found) < count and time.monotonic() < deadline:
            found += [record for records in consumer.poll(timeout_ms=200).values() for record in records]
        return [(record.key, json.loads(record.value)) for record in found]
    finally:
        consumer.close()


def test_without_its_broker_a_server_answers_and_says_what_is_lost(tmp_path: Path) -> None:
    with_champion(tmp_path)
    kafka = {"bootstrap_servers": ["127.0.0.1:1"]}
    feedback = {"sink": "kafka", "queue": 3}
    with (
        running(tmp_path, kafka=kafka, feedback=feedback, request_timeout="300ms") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        times = []
        for _ in range(20):
            started = time.monotonic()
            assert client.post("/predict", json={"text": "good"}).status_code == 200
            times.append(time.monotonic() - started)
        assert sorted(times)[10] < 0.1, "no answer waits for the broker"
        assert "relearnd_feedback_dropped_total 17.0" in client.get("/metrics").text
        label = client.post("/feedback", json={"id": "a", "label": "up"})
        assert (label.status_code, label.headers["Retry-After"]) == (503, "1")
        assert client.get("/readyz").status_code == 200


def test_without_a_sink_labels_are_refused(tmp_path: Path) -> None:
    with_champion(tmp_path)
    with running(tmp_path) as server:
        refused = httpx.post(f"{server.url}/feedback", json={"id": "a", "label": "up"})
        assert refused.status_code == 503
        assert "server.feedback.sink is none" in refused.json()["error"]


def test_no_page_of_a_third_party_can_send_labels(tmp_path: Path) -> None:
    """A browser sends JSON across origins only after asking, and nobody says yes."""
    with_champion(tmp_path)
    with running(tmp_path, feedback={"sink": "file", "path": str(tmp_path / "feedback")}) as server:
        body = b'{"id": "a", "label": "up"}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            answer = httpx.post(f"{server.url}/feedback", content=body, headers={"Content-Type": kind})
            assert answer.status_code == 415
        preflight = httpx.options(f"{server.url}/feedback", headers={"Origin": "https://elsewhere.example"})
        assert preflight.status_code == 405
        assert "access-control-allow-origin" not in preflight.headers
