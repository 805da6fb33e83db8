"""Writes records to a topic, fast: python fill_topic.py SERVERS TOPIC PARTITIONS FIRST COUNT SIZE.

Runs in the benchmark's own environment, which has confluent-kafka.
"""

import json
import random
import sys

VOCABULARY = 5000
LABELS = ("negative", "neutral", "positive")
QUEUED = 100_000


def words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(VOCABULARY)]


def value(number: int, size: int, vocabulary: list[str], rng: random.Random) -> bytes:
    """One labelled example as JSON, of so many bytes."""
    body = {
        "id": f"e-{number:09d}",
        "text": "",
        "label": LABELS[number % 3],
        "source": f"source-{number % 4}",
        "occurred_at": 1_767_225_600 + number // 100,
    }
    room = size - len(json.dumps(body))
    body["text"] = " ".join(rng.choices(vocabulary, k=room // 5 + 2))[:room].rstrip().ljust(room, "x")
    return json.dumps(body).encode()


def main() -> None:
    from confluent_kafka import Producer  # only here: `words` is used where it is not installed

    servers, topic, *numbers = sys.argv[1:]
    partitions, first, count, size = map(int, numbers)
    rng = random.Random(first)
    vocabulary = words(random.Random(7))
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": 50,
            "batch.size": 500_000,
            "queue.buffering.max.messages": 2 * QUEUED,
        }
    )
    for number in range(first, first + count):
        producer.produce(topic, value(number, size, vocabulary, rng), partition=number % partitions)
        if number % QUEUED == 0:
            producer.flush()
    if producer.flush(60):
        raise SystemExit("not every record was delivered")


if __name__ == "__main__":
    main()
