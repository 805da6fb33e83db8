"""A learner in this process with its loops running, and what feeds it, for tests."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kafka import KafkaProducer

from daemon.demo.brokers import Broker
from daemon.learner import Learner

LIMIT = 60.0  # seconds


def produce(broker: Broker, topic: str, values: Iterable[Mapping[str, Any]]) -> None:
    """Returns when the broker has them all."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for value in values:
        producer.send(topic, json.dumps(value).encode())
    producer.flush()
    producer.close()


@contextmanager
def looping(learner: Learner) -> Iterator[None]:
    """Ingest, cycle and upkeep on threads of their own, without the scheduler, and paused so that no worker starts."""
    learner.operations.pause("so that no worker starts")
    stop = threading.Event()
    runs = (learner.ingest.run, learner.learn, learner.keep_up)
    loops = [threading.Thread(target=run, args=(stop, lambda: None)) for run in runs]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        stop.set()
        for loop in loops:
            loop.join()


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {LIMIT:g} s"
        time.sleep(0.05)
