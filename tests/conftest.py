"""What every test can ask for: real Kafka brokers, each started once, and a topic of one's own.

Integration tests run on the embedded broker everywhere and on Apache Kafka where Java 17 and Maven are there; with CI=true a
missing Apache Kafka is a failure. KAFKA_BOOTSTRAP_SERVERS set means: on that one instead.
"""

import os

os.environ.update(
    {
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
)

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import hypothesis
import pytest

from daemon.core.errors import UnavailableError
from daemon.demo.brokers import Broker, apache_kafka, create_topic, embedded_broker, external_broker

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile(
    "relearnd", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("relearnd")

EXTERNAL = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
APACHE_KAFKA = pytest.param("apache-kafka", marks=pytest.mark.kafka)
BROKER_KINDS = ["external"] if EXTERNAL else ["tansu", APACHE_KAFKA]

_brokers_used = pytest.StashKey[dict[str, str]]()


class Brokers:
    """Starts each kind when it is first asked for; says why when it cannot."""

    def __init__(self, stack: ExitStack, used: dict[str, str]) -> None:
        self._stack = stack
        self._used = used
        self._running: dict[str, Broker] = {}

    def get(self, kind: str) -> Broker:
        if kind not in self._running:
            self._running[kind] = self._start(kind)
        return self._running[kind]

    def _start(self, kind: str) -> Broker:
        opened = {
            "tansu": embedded_broker,
            "apache-kafka": apache_kafka,
            "external": lambda: external_broker((EXTERNAL or "").split(",")),
        }[kind]
        try:
            broker = self._stack.enter_context(opened())
        except UnavailableError as error:
            self._used[kind] = "not available"
            if kind == "apache-kafka" and os.environ.get("CI") != "true":
                pytest.skip(str(error))
            pytest.fail(str(error))
        self._used[kind] = "ran"
        return broker


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_brokers_used] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    used = config.stash[_brokers_used]
    shown = ", ".join(f"{kind} ({what})" for kind, what in used.items()) or "none was needed"
    terminalreporter.write_line(f"Kafka brokers of this run: {shown}")


@pytest.fixture(scope="session")
def brokers(pytestconfig: pytest.Config) -> Iterator[Brokers]:
    with ExitStack() as stack:
        yield Brokers(stack, pytestconfig.stash[_brokers_used])


@pytest.fixture(params=BROKER_KINDS)
def broker(request: pytest.FixtureRequest, brokers: Brokers) -> Broker:
    return brokers.get(request.param)


@pytest.fixture
def topic(broker: Broker) -> str:
    """A fresh topic with three partitions."""
    name = f"examples-{uuid.uuid4().hex}"
    create_topic(broker, name, partitions=3)
    return name
