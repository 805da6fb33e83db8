"""Dead letters as records of another topic: the original bytes, with what was wrong and where they came from as headers."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kafka import KafkaProducer
from kafka.errors import MessageSizeTooLargeError

from daemon.config import KafkaConfig
from daemon.core.errors import SourceError
from daemon.core.stream import DeadLetter, kafka_topic
from daemon.runtime.kafka_client import brokers, connected, refusal

DELIVERY_LIMIT = 10.0  # seconds
LARGEST = 64 << 20  # bytes that we would send; the topic's own limit comes first
CLOSE_LIMIT = 2.0

Header = tuple[str, bytes]


class KafkaLetters:
    """See `daemon.ingest.outbox.Publisher`. Connects at the first letter. A producer that failed is thrown away."""

    def __init__(self, config: KafkaConfig, topic: str) -> None:
        self._config = config
        self._topic = topic
        self._producer: KafkaProducer | None = None

    def publish(self, letters: Sequence[DeadLetter]) -> None:
        try:
            self._send(letters)
        except Exception as error:
            self.close()
            denied = refusal(error, self._config)
            raise SourceError(
                f"dead letters are not copied to topic {self._topic}: {denied or error}; create it, or allow writing to it"
            ) from error

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):
                producer.close(timeout=CLOSE_LIMIT)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        producer = self._connected()
        sent = [(letter, producer.send(self._topic, **as_record(letter))) for letter in letters]
        producer.flush(timeout=DELIVERY_LIMIT)
        for letter, future in sent:
            try:
                future.get(timeout=DELIVERY_LIMIT)
            except MessageSizeTooLargeError:
                producer.send(self._topic, **as_record(letter, with_value=False)).get(timeout=DELIVERY_LIMIT)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            limit = int(DELIVERY_LIMIT * 1000)
            self._producer = connected(
                KafkaProducer,
                **brokers(self._config),
                acks="all",
                enable_idempotence=False,  # at least once is what is promised, and it asks for one right less
                max_request_size=LARGEST,
                linger_ms=5,
                max_block_ms=limit,
                bootstrap_timeout_ms=limit,
                request_timeout_ms=limit // 2,
                delivery_timeout_ms=limit,
            )
        return self._producer


def as_record(letter: DeadLetter, *, with_value: bool = True) -> dict[str, Any]:
    """Key, value and headers. Consumers find repetitions by the key. What the topic does not take is left out and said so."""
    position = letter.position
    headers: list[Header] = [
        ("relearnd-reason", letter.reason.encode()),
        ("relearnd-detail", letter.detail.encode(errors="replace")),
        ("relearnd-topic", kafka_topic(position.topic).encode()),
        ("relearnd-partition", b"%d" % position.partition),
        ("relearnd-offset", b"%d" % position.offset),
        ("relearnd-rejected-at", letter.rejected_at.isoformat().encode()),
    ]
    if letter.key is not None:
        headers.append(("relearnd-key", letter.key))
    if not with_value:
        headers.append(("relearnd-value-left-out", b"%d bytes" % len(letter.value or b"")))
    key = f"{position.topic}-{position.partition}-{position.offset}".encode()
    return {"key": key, "value": letter.value if with_value else None, "headers": headers}
