"""Quix Streams with a BatchingSink into DuckDB, in an environment of its own: python quix_sink.py SERVERS TOPIC COUNT FOLDER.

At least once, without checks of any kind: what one gets in twenty lines. Prints one line of JSON.
"""

import json
import logging
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import duckdb
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

COMMIT_EVERY = 20_000


class DuckdbSink(BatchingSink):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.connection = duckdb.connect(str(path), config={"threads": 1})
        self.connection.execute(
            "create table examples (part integer, off bigint, id varchar, text varchar, label varchar, source varchar, "
            "occurred_at bigint)"
        )

    def write(self, batch: SinkBatch) -> None:
        rows: list[tuple[Any, ...]] = [
            (
                batch.partition,
                item.offset,
                item.value["id"],
                item.value["text"],
                item.value["label"],
                item.value["source"],
                item.value["occurred_at"],
            )
            for item in batch
        ]
        self.connection.begin()
        with self.connection.appender("examples") as appender:
            appender.append_rows(rows)
        self.connection.commit()


def main() -> None:
    servers, topic, count, folder = sys.argv[1:]
    logging.disable(logging.INFO)
    sink = DuckdbSink(Path(folder) / "quix.duckdb")
    started, cpu = time.perf_counter(), time.process_time()
    app = Application(
        broker_address=servers,
        consumer_group=f"quix-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        commit_every=COMMIT_EVERY,
        commit_interval=60.0,
        state_dir=Path(folder) / "state",
        loglevel=None,
    )
    app.dataframe(app.topic(topic, value_deserializer="json")).sink(sink)
    app.run(count=int(count))
    seconds = time.perf_counter() - started
    ((rows,),) = sink.connection.execute("select count(*) from examples").fetchall()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "cpu_seconds": time.process_time() - cpu, "rss_mb": memory}))


if __name__ == "__main__":
    main()
