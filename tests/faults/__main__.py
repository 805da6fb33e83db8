"""`make test-faults`: thousands of faults on storage, broker and processes, and what was lost or came twice.

Writes build/bench/faults.json; ends with 1 when anything was lost, came twice or broke.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from daemon.core.errors import UnavailableError
from tests.faults import broker, life, poison, storage, zombies
from tests.faults.invariants import Finding
from tests.faults.journal import Journal
from tests.faults.machine import Machine, OnDisk, tell_stories
from tests.faults.shim import FAULTS, build
from tests.faults.storage import Extent, Point
from tests.faults.tally import Tally

RESULTS = Path("build/bench/faults.json")
PARTS = ("storage", "zombies", "poison", "stories", "broker")


def main() -> int:
    chosen = _arguments()
    began, when = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    console, tally = Console(), Tally()
    with _progress(console) as progress:
        for part in chosen.only:
            try:
                tally.merge(_PLAY[part](chosen, progress))
            except UnavailableError as error:
                console.print(f"{part}: not run: {error}", markup=False)
                if os.environ.get("CI") == "true":
                    return 1
    tally.print(console)
    seconds = time.monotonic() - began
    tally.write(chosen.out, seconds=seconds, when=when)
    console.print(f"{tally.total.points:,} points in {seconds / 60:.1f} minutes; written to {chosen.out}")
    return 0 if tally.clean else 1


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (all)")
    parser.add_argument("--points", type=int, default=None, help="storage points, drawn by the seed (every one)")
    parser.add_argument("--fault", choices=FAULTS, default=None, help="storage points of this fault only")
    parser.add_argument("--calls", type=_calls, default=range(sys.maxsize), help="with --fault: at these, as 80-96")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out the storage points that a stopped run with the same --out, of the same code, has played",
    )
    parser.add_argument(
        "--page-seeds", type=int, default=1, help="draws of surviving pages at each point of a power loss"
    )
    parser.add_argument("--chains", type=int, default=80, help="lives hurt six times in a row")
    parser.add_argument(
        "--stories", type=int, default=50, help="stories of the state machine on disk; four times that in memory"
    )
    parser.add_argument("--steps", type=int, default=30, help="steps of a story")
    parser.add_argument("--rounds", type=int, default=3, help="times each broker fault comes")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a broker fault lasts")
    parser.add_argument("--processes", type=int, default=min(cores, 8), help=f"at the same time ({min(cores, 8)})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _calls(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


@contextmanager
def _progress(console: Console):  # type: ignore[no-untyped-def]
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


Advance = Callable[[Tally], None]


def _bar(progress: Progress, part: str) -> tuple[Callable[[int], None], Advance]:
    """How a part says how much there is to do, and that one more is done."""
    task = progress.add_task(part, total=None, told="")

    def begin(total: int) -> None:
        progress.update(task, total=total)

    def advance(tally: Tally) -> None:
        total = tally.total
        progress.update(task, advance=1, told=f"{total.lost} lost, {total.twice} twice, {total.broken} broken")

    return begin, advance


def _storage(chosen: argparse.Namespace, progress: Progress) -> Tally:
    build()
    begin, advance = _bar(progress, "storage")

    def choose(extent: Extent) -> list[Point]:
        points = storage.every_point(extent, page_seeds=chosen.page_seeds, chains=chosen.chains, seed=chosen.seed)
        if chosen.fault:
            points = [point for point in points if point.fault == chosen.fault and point.blows[0][1] in chosen.calls]
        return storage.sample(points, chosen.points or len(points), seed=chosen.seed)

    with closing(Journal(chosen.out.with_suffix(".played.jsonl"), resume=chosen.resume)) as journal:
        return storage.sweep(choose, processes=chosen.processes, journal=journal, begin=begin, advance=advance)


def _zombies(chosen: argparse.Namespace, progress: Progress) -> Tally:
    begin, advance = _bar(progress, "zombies")
    begin(len(zombies.STORIES) * chosen.rounds)
    tally = Tally()
    for number in range(chosen.rounds):
        for name, story in zombies.STORIES.items():
            with tempfile.TemporaryDirectory(prefix="relearnd-zombie-") as folder:
                tally.add("two writers", story(Path(folder), number), where=name)
                advance(tally)
    return tally


def _poison(_: argparse.Namespace, progress: Progress) -> Tally:
    begin, advance = _bar(progress, "poison")
    begin(poison.points())
    return poison.poison(advance)


def _stories(chosen: argparse.Namespace, progress: Progress) -> Tally:
    begin, advance = _bar(progress, "stories")
    begin(2)
    tally = Tally()
    for machine, stories in ((Machine, 4 * chosen.stories), (OnDisk, chosen.stories)):
        finding, faults = Finding(), 1
        try:
            faults = tell_stories(machine, stories=stories, steps=chosen.steps, seed=chosen.seed)
        except Exception as error:  # whatever ends a story badly is what was looked for
            finding.broken.append(f"{error!r}\n" + "\n".join(getattr(error, "__notes__", [])))
        tally.add("stories", finding, points=faults, where=machine.__name__)
        advance(tally)
    return tally


def _broker(chosen: argparse.Namespace, progress: Progress) -> Tally:
    begin, advance = _bar(progress, "broker")
    begin(len(broker.FAULTS) * chosen.rounds)
    tally = Tally()
    with broker.scene() as scene:
        for _ in range(chosen.rounds):
            for fault in broker.FAULTS:
                outcome = scene.go_through(fault, seconds=chosen.seconds, records=500)
                tally.add(f"broker: {fault}", outcome.finding)
                advance(tally)
    return tally


_PLAY = {"storage": _storage, "zombies": _zombies, "poison": _poison, "stories": _stories, "broker": _broker}

if __name__ == "__main__":
    life.prepare()
    sys.exit(main())
