"""Topics on a real Apache Kafka, filled with examples, and an environment of its own for what the project does not install."""

import subprocess
import sys
import uuid
from pathlib import Path

from daemon.demo.brokers import Broker, create_topic
from tests.benchmarks import report

PARTITIONS = 4
QUIX_PACKAGES = ("quixstreams==3.28.0", "duckdb==2.0.0")
HERE = Path(__file__).parent


def quix_python() -> Path:
    """The interpreter that has Quix Streams, and with it confluent-kafka; installed by pip the first time."""
    folder = report.FOLDER.parent / "bench-quix"
    python = folder / "bin" / "python"
    installed = folder / "installed"
    if not installed.exists() or installed.read_text() != " ".join(QUIX_PACKAGES):
        print(f"installing {', '.join(QUIX_PACKAGES)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *QUIX_PACKAGES], check=True)
        installed.write_text(" ".join(QUIX_PACKAGES))
    return python


def filled_topic(broker: Broker, count: int, size: int) -> str:
    """A new topic with so many records of so many bytes."""
    topic = f"bench-{size}-{uuid.uuid4().hex[:8]}"
    create_topic(broker, topic, PARTITIONS)
    add(broker, topic, first=0, count=count, size=size)
    return topic


def add(broker: Broker, topic: str, *, first: int, count: int, size: int) -> None:
    numbers = map(str, (PARTITIONS, first, count, size))
    servers = ",".join(broker.bootstrap_servers)
    subprocess.run([quix_python(), HERE / "fill_topic.py", servers, topic, *numbers], check=True)
