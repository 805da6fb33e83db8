"""The mechanism of bench-ingest and bench-store, at a size that says nothing about speed."""

import json
import random
from pathlib import Path

import pytest
from kafka import KafkaProducer

from daemon.demo.brokers import create_topic
from tests.benchmarks import contenders, fill_topic, store
from tests.conftest import APACHE_KAFKA, Brokers

RECORDS = 3000


def test_records_are_as_long_as_asked_and_tell_themselves_apart() -> None:
    vocabulary = fill_topic.words(random.Random(7))
    values = [fill_topic.value(number, 160, vocabulary, random.Random(number)) for number in range(100)]
    assert {*map(len, values)} == {160}
    assert len({json.loads(value)["text"] for value in values}) == 100


@pytest.mark.parametrize("kind", [APACHE_KAFKA])
def test_the_benchmarks_learner_takes_in_a_topic_once(brokers: Brokers, kind: str, tmp_path: Path) -> None:
    broker = brokers.get(kind)
    create_topic(broker, "bench-short", partitions=4)
    vocabulary = fill_topic.words(random.Random(7))
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=20)
    for number in range(RECORDS):
        value = fill_topic.value(number, 160, vocabulary, random.Random(number))
        producer.send("bench-short", value, partition=number % 4)
    producer.flush()
    producer.close()
    polled = contenders.poll_loop(broker.bootstrap_servers, "bench-short", RECORDS)
    polled.close()
    assert polled.rows == RECORDS
    learner = contenders.Relearnd(broker.bootstrap_servers, "bench-short", tmp_path)
    learner.take_in(RECORDS)
    coverage = learner.store.coverage()
    learner.close()
    assert (coverage.offsets, coverage.examples, coverage.lost, coverage.twice) == (RECORDS, RECORDS, 0, 0)


def test_the_store_benchmark_asks_and_reports(tmp_path: Path) -> None:
    found = json.loads(store.main(["--rows", "6000", "--folder", str(tmp_path)]).read_text())
    assert found["name"] == "store"
    assert 0 < found["ratios"]["slowest_of_200_ms"] < 100
    assert 0 < found["ratios"]["file_vs_raw"] < 100
