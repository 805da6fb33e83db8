"""`make bench-ingest`: how fast a topic becomes durable examples, each once, against the bare client and against others.

Every contender takes in the same topics of a real Apache Kafka, in a process of its own, one after the other and interleaved; a
ratio is the median over the runs of rows per second of wall-clock time, divided within each run.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.demo.brokers import Broker, apache_kafka
from tests.benchmarks import report
from tests.benchmarks.streams import HERE, filled_topic, quix_python

SMALL, LARGE = 160, 2000  # bytes a record
WARM_UP = 10_000  # records taken in before it counts
LIMIT = 1800.0  # seconds for one contender

Results = dict[str, list[Mapping[str, Any]]]


def main(arguments: Sequence[str] | None = None) -> Path:
    asked = _asked(arguments)
    ratios: dict[str, float | None] = {}
    figures: dict[str, Any] = dict(report.versions("kafka-python", "duckdb", "pyarrow", "msgspec"))
    with apache_kafka() as broker:
        for size, count in ((SMALL, asked.small), (LARGE, asked.large)):
            name = "160B" if size == SMALL else "2kB"
            topic = filled_topic(broker, count, size)
            results = _compared(broker, topic, count, asked.runs)
            ratios[f"vs_poll_loop_{name}"] = _ratio(results["relearnd"], results["poll"])
            ratios[f"vs_quix_{name}"] = _ratio(results["relearnd"], results["quix"])
            for contender, runs in results.items():
                figures[f"{contender} {name}: rows/s"] = statistics.median(map(_speed, runs))
                figures[f"{contender} {name}: rows per CPU second"] = statistics.median(
                    run["rows"] / run["cpu_seconds"] for run in runs
                )
            figures[f"relearnd {name}: closing, with the last checkpoint: s"] = statistics.median(
                run["closing_seconds"] for run in results["relearnd"]
            )
            if size == SMALL:
                for beside in ("queries", "snapshots"):
                    run = _contend(broker, topic, count, "relearnd", beside)
                    figures[f"relearnd {name} beside {beside}: rows/s"] = _speed(run)
        figures |= _long_run(broker, asked.marks, asked.stop_at, asked.hour)
    return report.write("ingest", ratios=ratios, figures=figures, folder=asked.folder)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=1_000_000, help="records of 160 bytes")
    parser.add_argument("--large", type=int, default=200_000, help="records of 2 kB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--marks", type=int, nargs="+", default=[1_000_000, 5_000_000, 10_000_000], help="rows at which memory is read"
    )
    parser.add_argument(
        "--stop-at", type=int, default=1_000_000, help="rows at which the learner is stopped for an hour"
    )
    parser.add_argument("--hour", type=int, default=3_600_000, help="records that come in that hour")
    parser.add_argument("--folder", type=Path, default=report.FOLDER)
    return parser.parse_args(arguments)


def _compared(broker: Broker, topic: str, count: int, runs: int) -> Results:
    results: Results = {"poll": [], "relearnd": [], "quix": []}
    for contender in results:  # the broker makes its own topics for the first group, files come into the page cache
        _contend(broker, topic, min(count, WARM_UP), contender)
    for number in range(runs):
        for contender, done in results.items():
            done.append(_contend(broker, topic, count, contender))
            print(f"run {number + 1} of {runs}: {contender:9} {_speed(done[-1]):>9,.0f} rows/s", flush=True)
    return results


def _contend(broker: Broker, topic: str, count: int, contender: str, beside: str | None = None) -> Mapping[str, Any]:
    servers = ",".join(broker.bootstrap_servers)
    with _folder() as folder:
        if contender == "quix":
            command = [quix_python(), HERE / "quix_sink.py", servers, topic, str(count), folder]
        else:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.contenders",
                contender,
                "--servers",
                servers,
                "--topic",
                topic,
            ]
            command += ["--count", str(count), "--folder", folder, *(["--beside", beside] if beside else [])]
        *_, result = _lines(command)
    if result["rows"] < count:
        raise SystemExit(f"{contender} took in {result['rows']} of {count} records")
    return result


def _long_run(broker: Broker, marks: Sequence[int], stop_at: int, hour: int) -> dict[str, Any]:
    """Memory over many rows, and the catching up after an hour's stop, on the way."""
    topic = filled_topic(broker, max(*marks, stop_at + hour), SMALL)
    figures: dict[str, Any] = {}
    with _folder() as folder:
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.contenders",
            "long-run",
            "--topic",
            topic,
            "--folder",
            folder,
        ]
        command += ["--servers", ",".join(broker.bootstrap_servers), "--marks", *map(str, marks)]
        command += ["--stop-at", str(stop_at), "--until", str(stop_at + hour)]
        for line in _lines(command):
            if "mark" in line:
                figures[f"resident memory at {line['mark']:,} rows: MB"] = round(line["rss_mb"])
                figures[f"resident memory at most, up to {line['mark']:,} rows: MB"] = round(line["peak_mb"])
            else:
                figures[f"catching up with {line['caught_up']:,} rows: s"] = line["seconds"]
                figures["catching up: rows/s"] = line["caught_up"] / line["seconds"]
        figures[f"store file at {max(*marks, stop_at + hour):,} rows: MB"] = round(
            (folder / "store.duckdb").stat().st_size / 1e6
        )
    return figures


def _lines(command: Sequence[Any]) -> list[Mapping[str, Any]]:
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=LIMIT, cwd=HERE.parents[1]
    )
    if done.returncode:
        raise SystemExit(f"{command[2]} {command[3]} failed with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _speed(run: Mapping[str, Any]) -> float:
    return float(run["rows"] / run["seconds"])


def _ratio(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(_speed(one) / _speed(other) for one, other in zip(ours, theirs, strict=True))


@contextmanager
def _folder() -> Iterator[Path]:
    """Beside the results and not in a memory file system: what is durable must be."""
    report.FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=report.FOLDER))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
