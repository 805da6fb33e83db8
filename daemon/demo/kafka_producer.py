"""Writes the demo's records to its topic."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from daemon.core.errors import SourceError

DELIVERY_TIMEOUT_MS = 20_000


class TopicWriter:
    """Used by one thread. `acknowledged` counts the records that the broker has taken."""

    def __init__(self, servers: Sequence[str], topic: str) -> None:
        self._topic = topic
        self._waiting: list[Any] = []
        self.acknowledged = 0
        with _mapped(topic):
            self._producer = KafkaProducer(
                bootstrap_servers=list(servers),
                client_id="relearnd-demo",
                linger_ms=5,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                request_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
            )

    def write(self, key: bytes, value: bytes) -> None:
        """Raises SourceError when this or an earlier record could not be written."""
        with _mapped(self._topic):
            self._waiting.append(self._producer.send(self._topic, key=key, value=value))
            self._settle()

    def flush(self) -> None:
        """Wait until every record is acknowledged. Raises SourceError when one was not."""
        with _mapped(self._topic):
            self._producer.flush(timeout=DELIVERY_TIMEOUT_MS / 1000)
            for sent in self._waiting:
                sent.get(timeout=DELIVERY_TIMEOUT_MS / 1000)
            self._settle()

    def close(self) -> None:
        self._producer.close(timeout=5)

    def _settle(self) -> None:
        while self._waiting and self._waiting[0].is_done:
            self._waiting.pop(0).get(timeout=0)
            self.acknowledged += 1


@contextmanager
def _mapped(topic: str) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise SourceError(f"the demo could not write to topic {topic}: {error!r}; is the broker there?") from error
