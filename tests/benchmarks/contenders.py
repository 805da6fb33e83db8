"""What takes a topic in, one way or the other, each in a process of its own.

Prints lines of JSON; the last one is the result. Wall-clock time counts from before the client is built to the last durable commit;
what closing takes, with the store's last checkpoint, is told beside it.
"""

import argparse
import json
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from daemon.config import Config, KafkaConfig, TaskConfig
from daemon.core.stream import Batch
from daemon.ingest.kafka_source import KafkaSource
from daemon.ingest.strict_json import parse_object
from daemon.intake import Intake
from daemon.policy.schema import Policy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.runtime.throughput import prepare_for_a_stream
from daemon.store.duckdb_store import DuckdbStore

LABELS = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Taken:
    """How many records, when the last of them was read or durable, and what closes the contender, which is not timed."""

    rows: int
    at: float  # of time.perf_counter
    close: Callable[[], None]


def poll_loop(servers: list[str], topic: str, count: int) -> Taken:
    """kafka-python, records thrown away."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=5000
    )
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    read = 0
    while read < count:
        read += sum(map(len, consumer.poll(timeout_ms=500).values()))
    return Taken(read, time.perf_counter(), lambda: consumer.close(autocommit=False))


class Relearnd:
    """Ingest as the learner builds it, with the default policy, on a store in `folder`."""

    def __init__(self, servers: list[str], topic: str, folder: Path) -> None:
        group = f"bench-{uuid.uuid4().hex}"  # two stores of one group are refused
        kafka = KafkaConfig(bootstrap_servers=servers, topics=[topic], group_id=group)
        self._after_round: Callable[[], None] = lambda: None
        config = Config(kafka=kafka, task=TaskConfig(labels=list(LABELS)))
        self.store = DuckdbStore.open(
            folder / "store.duckdb", memory_limit=config.store.memory_limit, threads=config.store.threads
        )
        self.source = KafkaSource(config.kafka, store_id=self.store.identity())
        intake = Intake(
            config,
            Policy(),
            self.store,
            self.source,
            parse=parse_object,
            hash_of=None,
            clock=now,
            metrics=LearnerMetrics(),
            held=lambda: False,
            tell=lambda state, detail: self._after_round(),
        )
        self.ingest = intake.ingest
        self.durable_at = 0.0  # of time.perf_counter: the newest commit's end
        commit = self.store.commit

        def timed_commit(batch: Batch) -> None:
            commit(batch)
            self.durable_at = time.perf_counter()

        self.store.commit = timed_commit  # type: ignore[method-assign]

    def take_in(self, count: int, each_round: Callable[[int], None] = lambda rows: None) -> None:
        """Until the store holds so many examples."""
        stop = threading.Event()

        def look() -> None:
            rows = self.store.counts().examples
            each_round(rows)
            if rows >= count:
                stop.set()

        self._after_round = look
        self.ingest.run(stop, lambda: None)

    def close(self) -> None:
        self.source.close()
        self.store.close()


def relearnd(servers: list[str], topic: str, count: int, folder: Path, beside: str | None) -> Taken:
    prepare_for_a_stream()
    learner = Relearnd(servers, topic, folder)
    with _reading(learner.store, folder, beside):
        learner.take_in(count)
    return Taken(learner.store.counts().examples, learner.durable_at, learner.close)


def long_run(servers: list[str], topic: str, folder: Path, marks: list[int], stop_at: int, until: int) -> None:
    """Memory on the way to many rows, with a stop at `stop_at`; what came meanwhile, up to `until`, is caught up with.

    It rises with the log and falls at checkpoints, so beside what it is at a mark the most since the mark before is told.
    """
    marks = sorted(marks)
    seen: set[int] = set()
    started_again = peak = 0.0

    def each_round(rows: int) -> None:
        nonlocal peak
        peak = max(peak, _resident())
        for mark in marks:
            if rows >= mark and mark not in seen:
                seen.add(mark)
                print(json.dumps({"mark": mark, "rows": rows, "rss_mb": _resident(), "peak_mb": peak}), flush=True)
                peak = 0.0
        if started_again and rows >= until and until not in seen:
            seen.add(until)
            print(
                json.dumps({"caught_up": until - stop_at, "seconds": time.perf_counter() - started_again}), flush=True
            )

    prepare_for_a_stream()
    learner = Relearnd(servers, topic, folder)
    learner.take_in(stop_at, each_round)
    learner.close()
    started_again = time.perf_counter()
    learner = Relearnd(servers, topic, folder)
    learner.take_in(max(*marks, until), each_round)
    coverage = learner.store.coverage()
    if coverage.lost or coverage.twice:
        raise SystemExit(f"lost or twice: {coverage}")
    learner.close()


@contextmanager
def _reading(store: DuckdbStore, folder: Path, what: str | None) -> Iterator[None]:
    """Queries or training snapshots, one after the other, on a thread of their own."""
    stop = threading.Event()

    def read() -> None:
        number = 0
        while what and not stop.wait(0.01):
            number += 1
            last = store.counts().last_seq
            if what == "queries":
                store.window(after=0, up_to=last, limit=2000)
            else:
                store.snapshot(
                    folder / f"snapshot-{number % 2}",
                    data_cut=last,
                    recent_after=last // 2,
                    train_limit=5000,
                    replay_limit=2000,
                    holdout_limit=1000,
                    seed=number,
                    run_id=f"run-{number}",
                )

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()


def now() -> datetime:
    return datetime.now(UTC)


def _resident() -> float:
    """Megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=["poll", "relearnd", "long-run"])
    parser.add_argument("--servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--beside", choices=["queries", "snapshots"])
    parser.add_argument("--marks", type=int, nargs="*", default=[])
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--until", type=int, default=0)
    asked = parser.parse_args()
    servers = asked.servers.split(",")
    if asked.contender == "long-run":
        long_run(servers, asked.topic, asked.folder, asked.marks, asked.stop_at, asked.until)
        return
    started, cpu = time.perf_counter(), time.process_time()
    if asked.contender == "poll":
        taken = poll_loop(servers, asked.topic, asked.count)
    else:
        taken = relearnd(servers, asked.topic, asked.count, asked.folder, asked.beside)
    result: dict[str, Any] = {
        "rows": taken.rows,
        "seconds": taken.at - started,
        "cpu_seconds": time.process_time() - cpu,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    closing = time.perf_counter()
    taken.close()
    print(json.dumps({**result, "closing_seconds": time.perf_counter() - closing}))


if __name__ == "__main__":
    main()
