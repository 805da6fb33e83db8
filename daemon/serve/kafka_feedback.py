"""Answers and labels to Kafka topics. Loaded only when server.feedback.sink is kafka; it needs `relearnd[feedback]`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from kafka import KafkaProducer
from kafka.errors import KafkaError

from daemon.config import KafkaConfig
from daemon.core.errors import ConfigError, UnavailableError
from daemon.core.states import HalfKind
from daemon.runtime.kafka_client import brokers, connected

_DELIVERY_TIMEOUT_MS = 10_000
_CLOSE_SECONDS = 2.0


class KafkaSink:
    """See `daemon.serve.feedback.Sink`. Connects when there is something to write, so that a server starts without a broker."""

    def __init__(self, config: KafkaConfig, topics: Mapping[HalfKind, str]) -> None:
        """Raises ConfigError when a secret or certificate cannot be read."""
        brokers(config)
        self._config = config
        self._topics = topics
        self._producer: KafkaProducer | None = None

    def write(self, kind: HalfKind, keys: Sequence[str], records: Sequence[bytes]) -> None:
        topic = self._topics[kind]
        with self._mapped(topic):
            producer = self._connected()
            sent = [
                producer.send(topic, key=key.encode(), value=record) for key, record in zip(keys, records, strict=True)
            ]
            producer.flush(timeout=_DELIVERY_TIMEOUT_MS / 1000)
            for each in sent:
                each.get(timeout=_DELIVERY_TIMEOUT_MS / 1000)

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):
                producer.close(timeout=_CLOSE_SECONDS)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = connected(
                KafkaProducer,
                **brokers(self._config),
                linger_ms=5,
                max_block_ms=_DELIVERY_TIMEOUT_MS,
                bootstrap_timeout_ms=_DELIVERY_TIMEOUT_MS,
                request_timeout_ms=_DELIVERY_TIMEOUT_MS // 2,
                delivery_timeout_ms=_DELIVERY_TIMEOUT_MS,
            )
        return self._producer

    @contextmanager
    def _mapped(self, topic: str) -> Iterator[None]:
        """A producer that failed is thrown away: what it still holds would come out of order."""
        try:
            yield
        except (KafkaError, ConfigError, OSError) as error:
            self.close()
            raise UnavailableError(f"topic {topic} cannot be written: {error!r}") from error
