"""A whole learner, open, on a real broker: what its loops and its HTTP port say to one another."""

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from daemon.config import Config
from daemon.core.states import Action
from daemon.demo.brokers import Broker
from daemon.learner import now, open_learner
from tests.artefacts import add_version, promote
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
        wait_for("the end of every partition", lambda: learner.ingest.step() == 0 and len(learner.ingest.lag()) == 3)
        text = TestClient(learner.health()).get("/metrics").text
    assert f'relearnd_consumer_lag{{partition="0",topic="{topic}"}} 0.0' in text
    assert "relearnd_examples_stored_total 5.0" in text
    assert "relearnd_champion_version 0.0" in text


def test_a_registry_that_cannot_be_read_leaves_its_gauges_as_they_were(config: Config, tmp_path: Path) -> None:
    with open_learner(config) as learner:
        add_version(learner.registry, tmp_path / "run-1", seed=1, model=config.model)
        promote(learner.registry, 1, model=config.model)
        scrape = TestClient(learner.health())
        assert "relearnd_champion_version 1.0" in scrape.get("/metrics").text
        (config.registry.path / "models" / config.model / "aliases.json").write_bytes(b"half of")
        learner.operations.pause("so that a gauge of the store changes")
        answers = [scrape.get("/metrics") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    for line in ("champion_version 1.0", "paused 1.0", 'gauge_errors_total{source="registry"} 1.0'):
        assert f"relearnd_{line}" in answers[-1].text


def test_a_registry_that_cannot_be_read_stops_neither_ingest_nor_later_cycles(
    broker: Broker, topic: str, config: Config, tmp_path: Path
) -> None:
    with open_learner(config) as learner:
        add_version(learner.registry, tmp_path / "run-1", seed=1, model=config.model)
        promote(learner.registry, 1, model=config.model)
        aliases = config.registry.path / "models" / config.model / "aliases.json"
        sound = aliases.read_bytes()
        aliases.write_bytes(b"half of")
        state = lambda: learner.board.components.get("registry")  # noqa: E731
        with looping(learner):
            wait_for("a cycle", lambda: state() is not None)
            assert state().state == "failed"
            assert "aliases.json" in state().detail
            assert TestClient(learner.health()).get("/readyz").status_code == 503
            produce(broker, topic, records(range(5)))
            wait_for("examples", lambda: learner.store.counts().examples == 5)
            aliases.write_bytes(sound)
            learner.inbox.observe()
            wait_for("the next cycle", lambda: state().state == "ok")


def test_metrics_say_what_stands_on_the_disk(config: Config, tmp_path: Path) -> None:
    with open_learner(config) as learner:
        champion = add_version(learner.registry, tmp_path / "run-1", seed=1, model=config.model)
        promote(learner.registry, 1, model=config.model)
        TestClient(learner.control()).post("/v1/pause", json={})
        learner.disk.look()
        learner.follow_policy()
        scrape = TestClient(learner.health())
        told = metrics_of(scrape)
        age = (now() - champion.lineage.newest_occurred_at).total_seconds()
        assert told["relearnd_freshness_seconds"] == pytest.approx(age, abs=60)
        log = config.store.path.with_name("store.duckdb.wal")
        assert (told["relearnd_store_bytes"], told["relearnd_store_wal_bytes"]) == (
            config.store.path.stat().st_size,
            log.stat().st_size if log.exists() else 0,
        )
        assert told["relearnd_store_bytes"] > 0
        assert (told["relearnd_paused"], told["relearnd_policy_last_reload_successful"]) == (1, 1)
        config.policy.write_text("drift: [")
        learner.follow_policy()
        assert metrics_of(scrape)["relearnd_policy_last_reload_successful"] == 0
        release, _, code = learner._subject().code_version.partition("+")
        assert (release, len(code)) == (version("relearnd"), 12)


def metrics_of(scrape: TestClient) -> dict[str, float]:
    """Those without labels."""
    lines = (line.split() for line in scrape.get("/metrics").text.splitlines() if line[0] != "#")
    return {words[0]: float(words[1]) for words in lines if "{" not in words[0]}
