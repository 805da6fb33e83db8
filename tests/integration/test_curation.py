"""A whole learner on a real broker and a real store: duplicates, quarantine, the breaker, delayed labels, records with a schema."""

import json
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet as pq
import pytest
import yaml
from kafka import KafkaProducer
from starlette.testclient import TestClient

from daemon.config import Config
from daemon.core.errors import SourceError
from daemon.core.stream import Coverage
from daemon.demo.brokers import Broker, create_topic
from daemon.learner import Learner, open_learner

Record = Mapping[str, Any] | bytes | None


class Place:
    """A broker with three topics of one's own, and a folder that outlives a learner."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.topics = {name: f"{name}-{uuid.uuid4().hex}" for name in ("examples", "predictions", "labels")}
        for topic in self.topics.values():
            create_topic(broker, topic, partitions=1)

    def produce(self, name: str, *records: Record) -> None:
        producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap_servers)
        for record in records:
            value = json.dumps(record).encode() if isinstance(record, Mapping) else record
            producer.send(self.topics[name], value, key=b"k").get(10)
        producer.close()

    @contextmanager
    def learner(self, *, kafka: Mapping[str, Any] | None = None, **records: Any) -> Iterator[Learner]:
        policy = self.folder / "policy.yaml"
        policy.write_text(yaml.safe_dump({"records": records}))
        halves = {"predictions_topic": self.topics["predictions"], "labels_topic": self.topics["labels"]}
        config = {
            "policy": str(policy),
            "kafka": {
                "bootstrap_servers": self.broker.bootstrap_servers,
                "topics": [self.topics["examples"]],
                "poll_timeout": "100ms",
                **(halves if kafka is None else kafka),
            },
            "task": {"labels": ["yes", "no"]},
            "store": {"path": str(self.folder / "store.duckdb")},
            "registry": {"path": str(self.folder / "registry")},
            "runs": {"path": str(self.folder / "runs")},
        }
        with open_learner(Config.model_validate(config)) as learner:
            yield learner


@pytest.fixture
def place(broker: Broker, tmp_path: Path) -> Place:
    return Place(broker, tmp_path)


def example(id: str, text: str = "hello", label: str = "yes") -> dict[str, Any]:
    return {"id": id, "text": text, "label": label}


def prediction(id: str, text: str = "hello") -> dict[str, Any]:
    at = "2026-01-05T09:00:00+00:00"
    return {
        "id": id,
        "text": text,
        "prediction": "no",
        "version": 3,
        "occurred_at": at,
        "model": "m",
        "confidence": 0.5,
    }


def label(id: str, label: str = "yes", minute: int = 2) -> dict[str, Any]:
    return {"id": id, "label": label, "occurred_at": f"2026-01-05T09:{minute:02d}:00+00:00"}


def read_until(learner: Learner, offsets: int) -> Coverage:
    """Rounds until so many offsets ended somewhere."""
    for _ in range(100):
        if sum(learner.store.next_offsets().values()) >= offsets:
            break
        with suppress(SourceError):  # of topics that were just created; a learner tries again
            learner.ingest.step()
    learner.ingest.step()
    found = learner.store.coverage()
    assert (found.offsets, found.lost, found.twice) == (offsets, 0, 0)
    return found


def test_duplicates_and_conflicts_are_found_across_restarts(place: Place) -> None:
    place.produce("examples", example("a"), example("b", "other"), example("a"))
    with place.learner() as learner:
        assert read_until(learner, 3) == Coverage(3, 2, 0, 0, 0, 0, 0, quarantined=0, skipped_offsets=1, halves=0)
    place.produce(
        "examples", example("a"), example("b", "new", "no"), example("c", "hello", "no"), example("d", "x", "?")
    )
    with place.learner() as learner:
        found = read_until(learner, 7)
        assert (found.examples, found.skipped_offsets, found.quarantined) == (2, 2, 3)
        assert learner.store.counts().quarantined_by_reason == {"label_conflict": 2, "unknown_label": 1}


def test_a_tombstone_is_left_out(place: Place) -> None:
    place.produce("examples", None, example("a"))
    with place.learner() as learner:
        found = read_until(learner, 2)
        assert (found.examples, found.skipped_offsets) == (1, 1)


def test_the_breaker_stops_reading_until_an_operator_or_another_policy_lets_it_go_on(place: Place) -> None:
    bad = [b"broken"] * 12
    place.produce("examples", *bad)
    with place.learner(reject_window=10) as learner:
        read_until(learner, 12)
        paused = learner.store.get("ingest_paused")
        assert "12 of the newest 12" in paused["reason"]
        assert learner.intake.breaker.held()
    place.produce("examples", example("a"))
    with place.learner(reject_window=10) as learner:
        stop, beats = threading.Event(), 0

        def beat() -> None:
            nonlocal beats
            beats += 1
            if beats == 5:
                learner.operations.resume_ingest("mended")
            elif beats > 5 and learner.store.counts().examples:
                stop.set()
            elif beats <= 5:
                assert learner.store.counts().examples == 0
            assert beats < 200, "ingest did not go on"

        learner.ingest.run(stop, beat)
        assert learner.store.get("ingest_paused") is None
        learner.intake.breaker.noted(10, 10)
        assert learner.intake.breaker.held()
    with place.learner(reject_window=10, max_reject_share="90%") as learner:
        assert not learner.intake.breaker.held()


def test_a_field_that_is_suddenly_missing_stops_reading_and_says_what_to_do(place: Place) -> None:
    policy = {"reject_window": 10, "quality": {"max_null_share": {"source": "30%"}}}
    place.produce("examples", *({**example(f"a{n}", f"text {n}"), "source": "shop"} for n in range(10)))
    with place.learner(**policy) as learner:
        read_until(learner, 10)
        assert shown(learner)["ingest"] == ("ok", "")
    place.produce("examples", *(example(f"b{n}", f"other {n}") for n in range(12)))
    with place.learner(**policy) as learner:
        assert read_until(learner, 22).examples == 22
        state, detail = shown(learner)["ingest"]
        assert state == "degraded"
        assert "12 of the newest 12 records have no 'source'; records.quality.max_null_share.source is 0.3" in detail
        assert 'relearnd_ingest_paused{reason="checks"} 1.0' in learner_metrics(learner)
    place.produce("examples", example("c"))
    with place.learner(**policy) as learner:
        shown(learner)
        assert learner.store.counts().examples == 22, "nothing is read after a restart either"
        learner.operations.resume_ingest("the field is gone for good")
        read_until(learner, 23)


def test_labels_that_nobody_knew_stop_reading_also_when_they_came_before_a_restart(place: Place) -> None:
    policy = {
        "reject_window": 10,
        "share_window": 20,
        "unknown_label": "accept",
        "quality": {"max_new_label_share": "40%", "failed_check": "report"},
    }
    place.produce("examples", *(example(f"a{n}", f"text {n}", "old" if n < 20 else "late") for n in range(24)))
    with place.learner(**policy) as learner:
        read_until(learner, 24)
    place.produce("examples", *(example(f"b{n}", f"more {n}", "late" if n < 6 else "old") for n in range(12)))
    with place.learner(**policy) as learner:
        read_until(learner, 36)
        state, detail = shown(learner)["ingest"]
        assert (state, learner.intake.breaker.held()) == ("degraded", False)
        assert "6 of the newest 12 records have a label that is new" in detail


def shown(learner: Learner) -> dict[str, tuple[str, str]]:
    """The status after some rounds of the loop."""
    stop, beats = threading.Event(), 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats > 3:
            stop.set()

    learner.ingest.run(stop, beat)
    return {name: (component.state, component.detail) for name, component in learner.board.components.items()}


def learner_metrics(learner: Learner) -> str:
    return TestClient(learner.health()).get("/metrics").text


@pytest.mark.parametrize("restart", [False, True], ids=["in one go", "with a restart"])
@pytest.mark.parametrize("first", ["predictions", "labels"])
def test_a_prediction_and_its_label_become_one_example_whichever_comes_first(
    place: Place, first: str, restart: bool
) -> None:
    halves = {"predictions": prediction("a", "write to me@example.com"), "labels": label("a")}
    second = "labels" if first == "predictions" else "predictions"
    place.produce(first, halves[first])
    with place.learner(scrub=["email"]) as learner:
        assert read_until(learner, 1).halves == 1
        if not restart:
            place.produce(second, halves[second])
            found = read_until(learner, 2)
    if restart:
        place.produce(second, halves[second])
        with place.learner(scrub=["email"]) as learner:
            found = read_until(learner, 2)
    assert (found.examples, found.halves) == (1, 1)
    with place.learner(scrub=["email"]) as learner:
        (row,) = learner.store.window(after=0, up_to=9, limit=9)
        assert (row.id, row.text, row.label, row.source) == ("a", "write to <email>", "yes", place.topics["labels"])
        assert row.occurred_at.isoformat() == "2026-01-05T09:00:00+00:00"


def test_labels_and_predictions_that_come_twice_make_no_second_example(place: Place) -> None:
    place.produce("predictions", prediction("a"), prediction("a"))
    place.produce("labels", label("a"), label("a"))
    with place.learner() as learner:
        found = read_until(learner, 4)
        assert (found.examples, found.repeated_ids, found.halves + found.skipped_offsets) == (1, 0, 3)
    place.produce("labels", label("a", "no"))
    with place.learner() as learner:
        assert read_until(learner, 5).quarantined == 1
        assert learner.store.counts().quarantined_by_reason == {"label_conflict": 1}


def test_nothing_is_used_before_its_label_came(place: Place, tmp_path: Path) -> None:
    """The cut of a run counts in the order in which labels were ready, whenever the text was asked about."""
    place.produce("predictions", *(prediction(f"p{n}", f"text {n}") for n in range(30)))
    place.produce("labels", *(label(f"p{n}") for n in range(20)))
    with place.learner() as learner:
        read_until(learner, 50)
        cut = learner.store.counts().last_seq
        place.produce("labels", *(label(f"p{n}", minute=30) for n in range(20, 30)))
        read_until(learner, 60)
        snapshot = {"recent_after": 0, "train_limit": 99, "replay_limit": 99, "holdout_limit": 99, "seed": 1}
        learner.store.snapshot(tmp_path / "run", data_cut=cut, run_id="run", **snapshot)
        used = {id for file in (tmp_path / "run").glob("*.parquet") for id in pq.read_table(file)["id"].to_pylist()}
        assert used == {f"p{n}" for n in range(20)}
        assert learner.store.examples_after(cut) == 10
        assert len(learner.intake.curator.label_delays()) == 30
        assert learner.intake.curator.label_delays()[-1] == 1800.0


def test_dead_letters_that_are_read_again_are_curated_like_any_record(place: Place) -> None:
    odd = example("b", "other", "odd")
    place.produce("examples", example("a"), odd, odd, example("c", "hello", "odd"))
    with place.learner(unknown_label="dead_letter") as learner:
        assert read_until(learner, 4).dead_letters == 3
    with place.learner(unknown_label="accept") as learner:
        learner.store.amend(learner.intake.redriven(learner.store.dead_letters(9)).amendment)
        found = read_until(learner, 4)
        assert (found.examples, found.skipped_offsets, found.quarantined, found.dead_letters) == (2, 1, 1, 0)


def test_a_delayed_label_that_is_not_listed_is_refused_where_the_policy_says_so(place: Place) -> None:
    place.produce("labels", label("a"), label("b", "odd"))
    with place.learner(unknown_label="dead_letter") as learner:
        found = read_until(learner, 2)
        assert (found.halves, found.dead_letters) == (1, 1)
        assert learner.store.dead_letters(9)[0].reason == "unknown_label"


def test_a_record_that_was_too_large_is_read_again_from_its_topic_once_the_limit_is_raised(place: Place) -> None:
    place.produce("examples", example("a"), {**example("b"), "unused": "x" * 200_000}, example("c"))
    with place.learner(kafka={"max_record": "100KiB"}) as learner:
        assert read_until(learner, 3).dead_letters == 1
        assert learner.intake.redriven(learner.store.dead_letters(9)).amendment.positions == []
    with place.learner(kafka={"max_record": "1MiB"}) as learner:
        learner.store.amend(learner.intake.redriven(learner.store.dead_letters(9)).amendment)
        found = read_until(learner, 3)
        assert (found.examples, found.dead_letters) == (3, 0)
        coverage = learner.store.coverage()
        assert (coverage.lost, coverage.twice) == (0, 0)


# --- records with a schema ----------------------------------------------------------------------------------------

AVRO = {
    "type": "record",
    "name": "Ticket",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "text", "type": "string"},
        {"name": "label", "type": {"type": "enum", "name": "Label", "symbols": ["yes", "no"]}},
        {"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
JSON_SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"id": {"type": "string"}, "text": {"$ref": "text.json"}},
    "required": ["id", "text", "label"],
}
SCHEMAS: Mapping[str, Any] = {
    "/schemas/ids/1": {"schema": json.dumps(AVRO)},
    "/schemas/ids/2": {
        "schema": json.dumps(JSON_SCHEMA),
        "schemaType": "JSON",
        "references": [{"name": "text.json", "subject": "text", "version": 4}],
    },
    "/subjects/text/versions/4": {"schema": '{"type": "string", "maxLength": 5}', "schemaType": "JSON"},
    "/schemas/ids/3": {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"},
}


class RegistryServer:
    """Speaks the part of the registry's REST API that is used, and counts what it is asked."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                found = SCHEMAS.get(self.path)
                body = json.dumps(found or {"error_code": 40403, "message": "Schema not found"}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def schemas() -> Iterator[RegistryServer]:
    server = RegistryServer()
    yield server
    server.stop()


def framed(number: int, payload: bytes) -> bytes:
    return struct.pack(">bI", 0, number) + payload


def avro(**fields: Any) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(
        out, AVRO, {"id": 7, "text": "hello", "label": "yes", "occurred_at": 1767323045000000, **fields}
    )
    return framed(1, out.getvalue())


def test_avro_and_json_schema_records_are_read_and_others_become_dead_letters(
    place: Place, schemas: RegistryServer
) -> None:
    place.produce(
        "examples",
        avro(),
        avro(id=8, text="bye"),
        framed(2, b'{"id": "j", "text": "short", "label": "no"}'),
        framed(2, b'{"id": "j", "text": "too long", "label": "no"}'),
        framed(2, b'{"id": "j", "id": "k", "text": "a", "label": "no"}'),
        avro()[:-1],
        avro() + b"more",
        framed(3, b"proto"),
        framed(99, b"nobody"),
        framed(99, b"nobody knows it still"),
        b'{"id": "plain", "text": "a", "label": "no"}',
    )
    with place.learner(kafka={"schema_registry": {"url": schemas.url}}) as learner:
        read_until(learner, 11)
        rows = learner.store.window(after=0, up_to=9, limit=9)
        assert [(row.id, row.text, row.label) for row in rows] == [
            ("7", "hello", "yes"),
            ("8", "bye", "yes"),
            ("j", "short", "no"),
        ]
        assert rows[0].occurred_at.isoformat() == "2026-01-02T03:04:05+00:00"
        assert learner.store.counts().dead_letters_by_reason == {
            "schema_mismatch": 3,
            "schema_unknown": 4,
            "duplicate_key": 1,
        }
        details = " ".join(letter.detail for letter in learner.store.dead_letters(20))
        assert "text breaks its rule 'maxLength'" in details
        assert "4 bytes are left over" in details
        assert "PROTOBUF" in details
    assert sorted(schemas.asked) == sorted([*SCHEMAS, "/schemas/ids/99"]), "each is asked for once"


def test_while_the_registry_does_not_answer_nothing_is_read_and_nothing_lost(place: Place) -> None:
    server = RegistryServer()
    server.stop()
    place.produce("examples", avro())
    with place.learner(kafka={"schema_registry": {"url": server.url, "timeout": "1s"}}) as learner:
        with pytest.raises(SourceError, match="schema registry"):
            until_it_raises(learner.ingest.step)
        assert learner.store.counts().dead_letters == 0
    back = RegistryServer()
    with place.learner(kafka={"schema_registry": {"url": back.url}}) as learner:
        assert read_until(learner, 1).examples == 1
    back.stop()


def until_it_raises(step: Callable[[], int]) -> None:
    for _ in range(50):
        step()
