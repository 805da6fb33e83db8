"""A real Apache Kafka behind the proxy, and what can become of either while records are read from it.

Clients learn the proxy's address as the broker's own, so that nothing goes past it; the producer has a way in of its own.
"""

import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaProducer

from daemon.config import KafkaConfig
from daemon.core.errors import UnavailableError
from daemon.demo.brokers import Broker, create_topic, kafka_jars
from daemon.ingest.kafka_source import KafkaSource
from daemon.learner import now
from daemon.store.duckdb_store import DuckdbStore
from tests.faults import life
from tests.faults.invariants import Finding, check_coverage, dump
from tests.faults.proxy import TOXICS, Proxy

KILL = "kill -9 of the broker"
FAULTS = (*TOXICS, KILL)
SILENT = ("down", KILL)  # faults during which nothing can be read: then nothing may be burnt either
MOST_CPU = 0.05  # share of one core while the broker does not answer
CAUGHT_UP_WITHIN = 60.0  # seconds after the fault is over
READY_WITHIN = 60.0


class Kafka:
    """One Apache Kafka, started and killed at will; its log stays. `port` is the one behind the proxy."""

    def __init__(
        self, folder: Path, proxy_port: int, ports: tuple[int, ...], more: Mapping[str, object] | None = None
    ) -> None:
        self.port, self._direct, controller = ports
        self._folder = folder
        self.data = folder / "data"
        self._settings = folder / "server.properties"
        properties = {**_properties(folder / "data", self.port, self._direct, controller, proxy_port), **(more or {})}
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        self._java("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._settings), "--standalone")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def direct(self) -> Broker:
        """The way past the proxy, for who produces."""
        return Broker("apache-kafka", [f"127.0.0.1:{self._direct}"])

    def start(self) -> None:
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["java", "-Xmx512m", "-cp", f"{kafka_jars()}/*", "kafka.Kafka", str(self._settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(Exception):
                producer = KafkaProducer(bootstrap_servers=self.direct.bootstrap_servers, bootstrap_timeout_ms=2000)
                producer.close()
                return
            time.sleep(0.1)
        raise UnavailableError(f"Kafka is not ready:\n{(self._folder / 'broker.log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _java(self, *arguments: str) -> None:
        done = subprocess.run(["java", "-cp", f"{kafka_jars()}/*", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(done.stdout + done.stderr)


_CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"


def _properties(data: Path, port: int, direct: int, controller: int, proxy: int) -> Mapping[str, object]:
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listeners": f"PROXIED://127.0.0.1:{port},DIRECT://127.0.0.1:{direct},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PROXIED://127.0.0.1:{proxy},DIRECT://127.0.0.1:{direct}",
        "listener.security.protocol.map": "PROXIED:PLAINTEXT,DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "DIRECT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
    }


class Reading(threading.Thread):
    """The real loop from the real source into the real store, on a thread."""

    def __init__(self, port: int, topic: str, store: DuckdbStore) -> None:
        super().__init__(name="reading", daemon=True)
        self._end = threading.Event()
        self._beats = 0
        self._source = KafkaSource(
            KafkaConfig(bootstrap_servers=[f"127.0.0.1:{port}"], topics=[topic], batch_records=500)
        )
        self._loop = life.ingest_of(self._source, store, clock=now, poll_timeout=0.1)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._loop.run(self._end, self._beat)
        except BaseException as error:
            self.error = error

    def _beat(self) -> None:
        self._beats += 1

    def stop(self) -> None:
        self._end.set()
        self.join(30)
        self._source.close()


@dataclass(frozen=True)
class Outcome:
    finding: Finding
    cpu: float  # share of one core, while the fault lasted
    seconds: float  # from its end until everything was read


class Scene:
    """A broker, a proxy, a topic and a store that go through one fault after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports(3)
        self.proxy = Proxy(upstream=ports[0])
        self.kafka = Kafka(folder, self.proxy.port, ports)
        create_topic(self.kafka.direct, life.TOPIC, partitions=3)
        self.store = life.opened(folder)
        self.produced = 0
        self.reading = Reading(self.proxy.port, life.TOPIC, self.store)
        self.reading.start()

    def go_through(self, fault: str, *, seconds: float, records: int) -> Outcome:
        """Records before, while and after it lasts; then all of them must be there once, soon."""
        self._produce(records)
        self._strike(fault)
        began, cpu = time.monotonic(), time.process_time()
        if fault not in SILENT:
            self._produce(records)
        time.sleep(seconds)
        cpu = (time.process_time() - cpu) / (time.monotonic() - began)
        self._lift(fault)
        over = time.monotonic()
        self._produce(records)
        finding = Finding()
        while self.store.counts().examples < self.produced and time.monotonic() - over < CAUGHT_UP_WITHIN:
            time.sleep(0.02)
        self._account(fault, cpu, finding)
        return Outcome(finding, cpu, time.monotonic() - over)

    def _strike(self, fault: str) -> None:
        self.kafka.kill() if fault == KILL else self.proxy.set(fault)

    def _lift(self, fault: str) -> None:
        self.kafka.start() if fault == KILL else self.proxy.set(None)

    def _account(self, fault: str, cpu: float, finding: Finding) -> None:
        check_coverage(self.store, dump(self.store), finding)
        missing = self.produced - self.store.counts().examples
        finding.lost += max(0, missing)
        finding.twice += max(0, -missing)
        if fault in SILENT and cpu > MOST_CPU:
            finding.broken.append(f"{cpu:.0%} of a core while the broker did not answer")
        if self.reading.error is not None:
            finding.broken.append(f"ingest ended: {self.reading.error!r}")

    def _produce(self, records: int) -> None:
        producer = KafkaProducer(bootstrap_servers=self.kafka.direct.bootstrap_servers, acks="all", linger_ms=5)
        sent = [
            producer.send(life.TOPIC, _value(number), partition=number % 3)
            for number in range(self.produced, self.produced + records)
        ]
        for future in sent:
            future.get(30)
        producer.close()
        self.produced += records

    def close(self) -> None:
        self.reading.stop()
        self.store.close()
        self.kafka.kill()
        self.proxy.close()


@contextmanager
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="relearnd-broker-", ignore_cleanup_errors=True) as folder:
        opened = Scene(Path(folder))
        try:
            yield opened
        finally:
            opened.close()


def _value(number: int) -> bytes:
    return json.dumps({"id": f"id-{number}", "text": f"text {number} " + "x" * 100, "label": life.LABELS[0]}).encode()


def free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = tuple(each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return ports
