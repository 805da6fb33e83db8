"""Two full rounds with everything dying in between: nothing lost, nothing twice, the server answers all along."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from daemon.demo.brokers import Broker
from daemon.demo.tweets import Tweet, stream
from tests.acceptance.harness import Daemon, Traffic, wait_until

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def tweets() -> dict[str, list[Tweet]]:
    by_source: dict[str, list[Tweet]] = {}
    for tweet in stream(seed=7):
        by_source.setdefault(tweet.source, []).append(tweet)
    return by_source


@pytest.fixture
def daemon(tmp_path: Path, broker: Broker, topic: str) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, broker.bootstrap_servers, topic)
    try:
        yield daemon
    finally:
        daemon.close()


def workers_of(learner: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{learner.pid}/task/{learner.pid}/children").parent.parent
    pids = [pid for task in children.iterdir() for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in pids if b"daemon.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def training(daemon: Daemon) -> bool:
    status = daemon.get("/v1/status")
    progress = status and status["run"] and status["run"]["progress"]
    return bool(progress and progress["stage"] == "train" and progress["done"] > 0)


@pytest.mark.timeout(480)
def test_two_rounds_through_every_kind_of_death(daemon: Daemon, tweets: dict[str, list[Tweet]]) -> None:
    airline, coachella, deflategate = (tweets[name] for name in ("airline", "coachella", "deflategate"))
    server = daemon.start("serve")
    assert httpx.get(daemon.url() + "/readyz").status_code == 503, "no model yet"

    # The learner dies between poll and commit, as kill -9 would have it, and comes back.
    daemon.produce(airline[:200])
    doomed = daemon.start("learn", RELEARND_FAILPOINT="before_commit:2")
    wait_until("a first batch is stored", lambda: daemon.stored() > 0 or doomed.poll(), seconds=30)
    daemon.produce(airline[200:400])
    daemon.produce_raw(b"\xff\xfe", b"not json", b'{"id": "no-label", "text": "a text"}')
    assert doomed.wait(60) == -signal.SIGKILL
    learner = daemon.start("learn")
    wait_until("all of airline is stored", lambda: daemon.stored() == 403, seconds=60)

    # The first version is a run like any other.
    wait_until("a first champion", lambda: daemon.champion() == 1, seconds=150)
    wait_until("the server answers", lambda: httpx.get(daemon.url() + "/readyz").status_code == 200, seconds=30)
    traffic = Traffic(daemon.url(), [tweet.text for tweet in coachella[600:700]])
    traffic.start()

    # Round one: the worker is killed in mid-run; the next run makes it.
    daemon.produce(coachella[:400])
    wait_until("a run is training", lambda: training(daemon), seconds=90)
    for pid in workers_of(learner):
        os.kill(pid, signal.SIGKILL)
    wait_until("the run has failed", lambda: any(r["state"] == "failed" for r in daemon.get("/v1/runs")["runs"]))
    wait_until("a second champion", lambda: daemon.champion() == 2, seconds=150)

    # Round two: the learner is killed in mid-run; its worker dies with it, and a fresh learner goes on.
    daemon.produce(deflategate[:400])
    wait_until("a run is training", lambda: training(daemon), seconds=90)
    orphans = workers_of(learner)
    learner.kill()
    learner.wait()
    assert orphans
    wait_until(
        "the worker died with its learner",
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans),
        seconds=20,
    )
    learner = daemon.start("learn")
    wait_until("a third champion", lambda: daemon.champion() == 3, seconds=150)
    wait_until("the server answers with it", lambda: traffic.versions[3] > 20, seconds=30)

    # Everything is accounted for.
    states = [run["state"] for run in daemon.get("/v1/runs")["runs"]]
    assert states.count("finished") == 3
    assert "failed" in states
    assert "abandoned" in states
    coverage = daemon.get("/v1/coverage")
    assert coverage == {
        "offsets": 1203,
        "examples": 1200,
        "dead_letters": 3,
        "gap_offsets": 0,
        "lost": 0,
        "twice": 0,
        "repeated_ids": 0,
        "quarantined": 0,
        "skipped_offsets": 0,
        "halves": 0,
    }
    reasons = daemon.get("/v1/status")["stream"]["dead_letters_by_reason"]
    assert reasons == {"not_utf8": 1, "not_json": 1, "missing_field": 1}

    # The server needs no learner, and everybody stops cleanly.
    assert daemon.stop(learner) == 0
    before = traffic.answered
    wait_until("the server answers without a learner", lambda: traffic.answered > before + 20, seconds=30)
    traffic.stop()
    assert traffic.failures == []
    assert set(traffic.versions) == {1, 2, 3}
    assert daemon.stop(server) == 0
    assert subprocess.run(["pgrep", "-f", str(daemon.folder)], capture_output=True).stdout == b""


@pytest.mark.timeout(240)
def test_an_operator_steers_a_supervised_daemon(daemon: Daemon, tweets: dict[str, list[Tweet]]) -> None:
    supervisor = daemon.start("run")
    daemon.produce(tweets["airline"][:400])
    wait_until("all is stored", lambda: daemon.stored() == 400, seconds=60)

    assert daemon.cli("pause", "--reason", "acceptance").returncode == 0
    refused = daemon.cli("retrain")
    assert (refused.returncode, "paused" in refused.stderr) == (75, True)
    assert daemon.cli("resume").returncode == 0
    wait_until("a first champion", lambda: daemon.champion() == 1, seconds=150)
    assert daemon.cli("retrain", "--reason", "once more").returncode == 0
    wait_until("a second version", lambda: len(daemon.get("/v1/models")["versions"]) == 2, seconds=150)

    served = lambda: httpx.get(daemon.url() + "/status").json()["served"]  # noqa: E731
    daemon.cli("promote", "2")
    wait_until("version 2 answers", lambda: served() == 2, seconds=20)
    assert daemon.cli("rollback", "--reason", "acceptance").returncode == 0
    wait_until("version 1 answers again", lambda: served() == 1, seconds=20)
    missing = daemon.cli("promote", "99")
    assert (missing.returncode, "99" in missing.stderr) == (64, True)
    for command in ("status", "models", "decisions", "runs", "dead-letters"):
        assert daemon.cli(command, "--json").stdout.startswith("{")
        assert daemon.cli(command).returncode == 0

    learner = next(
        int(pid)
        for pid in Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        if b"learn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(learner, signal.SIGKILL)
    wait_until("the learner is back", lambda: daemon.get("/v1/status"), seconds=60)
    assert daemon.get("/v1/models")["aliases"]["champion"] == 1
    assert daemon.stop(supervisor) == 0
