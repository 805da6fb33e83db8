"""The real commands in subprocesses, on a real broker, with real tweets and the real model."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import yaml
from kafka import KafkaProducer

from daemon.control.client import ControlClient
from daemon.core.errors import UnavailableError
from daemon.demo.tweets import Tweet

T = TypeVar("T")

POLICY = {
    "drift": {
        "observe_every": "1s",
        "reference_examples": 200,
        "current_examples": 200,
        "min_examples": 150,
        "confirmations": 1,  # what is produced here comes in bursts: nothing new comes to confirm it
        "columns": {
            "label": {"method": "jensenshannon", "threshold": 0.2},
            "text": {"method": "abs_text_content_drift", "threshold": 0.75},
        },
    },
    "triggers": {
        "bootstrap": {"min_examples": 250},
        "drift": {"min_new_examples": 100},  # the window that shows drift holds about 150
        "performance": {"enabled": False},
        "cooldown": "1s",
        "failure_backoff": "1s",
    },
    "training": {"epochs": 2, "batch_size": 16, "patience": 2, "max_examples": 160, "max_validation": 30},
    "gates": {
        "evidence": {"min_examples": 30, "min_per_class": 1},
        "floor": {"accuracy": "35%", "macro_f1": "20%"},
        "non_inferiority": {"recent_margin": "5%", "past_margin": "30%"},
        "per_class": {"min_recall": "0%"},
        "latency": {"max_p99_ms": 5000},
        "max_holdout": 150,
    },
}


def wait_until(what: str, condition: Callable[[], T], *, seconds: float = 120.0) -> T:
    """The first true value of `condition`; fails the test when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class Daemon:
    """One installation in a folder: its files, its processes, its control API."""

    folder: Path
    broker: list[str]
    topic: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(POLICY))
        self.config.write_text(yaml.safe_dump(self._config()))
        self.producer = KafkaProducer(bootstrap_servers=self.broker, linger_ms=20)

    def _config(self) -> dict[str, Any]:
        return {
            "model": "sentiment",
            "policy": "policy.yaml",
            "kafka": {"bootstrap_servers": self.broker, "topics": [self.topic], "poll_timeout": "100ms"},
            "splits": {"validation": "5%", "holdout": "20%"},
            "task": {"labels": ["negative", "neutral", "positive"]},
            "metrics": {"port": 0},
            "server": {"port": 0, "ready_file": "server.url", "poll_every": "100ms"},
        }

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "daemon", command, "--config", "config.yaml"],
                cwd=self.folder,
                env={**os.environ, **environment},
                stderr=log,
            )
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM; the exit code."""
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.producer.close()

    # --- what it says ---------------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Any:
        """None while nobody answers."""
        client = ControlClient(self.folder / "data" / "control.sock", timeout=10)
        try:
            return client.get(path, **query)
        except UnavailableError:
            return None
        finally:
            client.close()

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daemon", *arguments],
            cwd=self.folder,
            env={**os.environ, "RELEARND_CONFIG": "config.yaml"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stored(self) -> int:
        status = self.get("/v1/status")
        return status["stream"]["examples"] + status["stream"]["dead_letters"] if status else -1

    def champion(self) -> int | None:
        status = self.get("/v1/status")
        return status["aliases"]["champion"] if status else None

    def url(self) -> str:
        return wait_until("the server listens", self._url, seconds=30)

    def _url(self) -> str | None:
        file = self.folder / "server.url"
        return file.read_text().strip() if file.exists() else None

    # --- the stream -----------------------------------------------------------------------------------------------

    def produce(self, tweets: Iterable[Tweet]) -> None:
        for tweet in tweets:
            record = {"id": tweet.id, "text": tweet.text, "label": tweet.label, "source": tweet.source}
            self.producer.send(self.topic, key=tweet.id.encode(), value=msgspec.json.encode(record))
        self.producer.flush()

    def produce_raw(self, *values: bytes) -> None:
        for value in values:
            self.producer.send(self.topic, value=value)
        self.producer.flush()


class Traffic(threading.Thread):
    """A client that asks without a pause until it is stopped; remembers every answer that was not a 200."""

    def __init__(self, url: str, texts: list[str]) -> None:
        super().__init__(daemon=True)
        self._url, self._texts = url, texts
        self._end = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self.versions: Counter[int] = Counter()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            turn = 0
            while not self._end.wait(0.03):
                try:
                    response = client.post("/predict", json={"text": self._texts[turn % len(self._texts)]})
                    self._note(response)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                turn += 1

    def _note(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            self.failures.append(f"{response.status_code} {response.text}")
            return
        self.answered += 1
        self.versions[response.json()["version"]] += 1

    def stop(self) -> None:
        self._end.set()
        self.join()
