"""The storage sweep: a scripted life, hurt at every call by which it changes its folder, and held to account each time."""

import json
import os
import queue
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import shim
from tests.faults.invariants import Finding
from tests.faults.journal import Journal
from tests.faults.shim import FAULTS, Fault
from tests.faults.tally import Tally

ROOT = Path(__file__).parents[2]
BLOWS_OF_A_CHAIN = 6
LONGEST_STEP = 60  # calls between two blows of a chain
IN_A_CHAIN = ("kill", "torn write", "disk full once", "failed sync", "power loss", "power loss, names late")

Counted = Mapping[shim.Kind, int]
Blow = tuple[str, int]  # a fault, and the number of the call it comes at


@dataclass(frozen=True)
class Point:
    """One life: the faults that come over it, one after the other."""

    fault: str
    blows: Sequence[Blow]
    seed: int
    begin: str = "nothing"  # or "schema 1": with a store of that release

    @property
    def where(self) -> str:
        """No two points are at the same place."""
        return f"from {self.begin} at {', '.join(f'{name} {at}' for name, at in self.blows)}, seed {self.seed}"


class ForkServer:
    """A process under the shim that plays lives; used by one thread."""

    def __init__(self, references: Path) -> None:
        self._references = references
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim.build()),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forkserver"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, root: Path, begin: str) -> tuple[Counted, Counted]:
        """How many calls of each kind an undisturbed life makes until its store is open, and in all; writes the reference."""
        counted = self._ask("measure", root=str(root), reference=str(self._references / begin), begin=begin)
        return _by_kind(counted["opening"]), _by_kind(counted["all"])

    def play(self, root: Path, point: Point) -> tuple[int, Finding]:
        """How many of its blows struck, and what is wrong afterwards."""
        told = self._ask(
            "point",
            root=str(root),
            reference=str(self._references / point.begin),
            begin=point.begin,
            blows=list(point.blows),
            seed=point.seed,
        )
        return told["struck"], Finding(**told["finding"])

    def sabotage(self) -> None:
        """Stores that are not right from now on, to see whether that is seen."""
        self._ask("sabotage")

    def _ask(self, task: str, **arguments: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server died with code {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _by_kind(counted: Mapping[str, int]) -> Counted:
    return {shim.Kind[name]: count for name, count in counted.items()}


@dataclass(frozen=True)
class Extent:
    """How many calls there are to strike at."""

    life: Counted
    migration: Counted


def calls_of(fault: Fault, counted: Counted) -> int:
    return sum(counted[kind] for kind in fault.kinds)


def every_point(extent: Extent, *, page_seeds: int, chains: int, seed: int) -> list[Point]:
    """Each fault at each call it can come at; power losses that let some pages through with several seeds; and chains."""
    points = []
    for fault in FAULTS.values():
        for drawn in range(page_seeds if fault.some_pages else 1):
            for begin, counted in (("nothing", extent.life), ("schema 1", extent.migration)):
                points += [
                    Point(fault.name, [(fault.name, at)], seed * 1000 + drawn, begin)
                    for at in range(1, calls_of(fault, counted) + 1)
                ]
    rng = random.Random(seed)
    for number in range(chains):
        blows = [(rng.choice(IN_A_CHAIN), rng.randint(1, LONGEST_STEP)) for _ in range(BLOWS_OF_A_CHAIN)]
        points.append(Point("one fault after another", blows, seed * 1000 + number))
    return points


def sample(points: Sequence[Point], size: int, *, seed: int) -> list[Point]:
    """So many, of each fault about equally many."""
    rng = random.Random(seed)
    by_fault: dict[str, list[Point]] = {}
    for point in rng.sample(points, len(points)):
        by_fault.setdefault(point.fault, []).append(point)
    chosen: list[Point] = []
    while len(chosen) < size and any(by_fault.values()):
        chosen += [left.pop() for left in by_fault.values() if left]
    return chosen[:size]


@contextmanager
def fork_servers(count: int, folder: Path) -> Iterator[list[ForkServer]]:
    servers = [ForkServer(folder) for _ in range(count)]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def sweep(
    choose: Callable[[Extent], Sequence[Point]],
    *,
    processes: int,
    journal: Journal,
    begin: Callable[[int], None] = lambda _: None,
    advance: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Play the points that `choose` picks, knowing how many calls there are; says how many they are, and how it goes.

    What the journal has is not played again.
    """
    tally = Tally()

    def tell(point: Point, struck: int, finding: Finding) -> None:
        tally.add(point.fault, finding, points=struck, where=point.where)
        advance(tally)

    with tempfile.TemporaryDirectory(prefix="relearnd-faults-") as name:
        folder = Path(name)
        with fork_servers(processes, folder) as servers, ThreadPoolExecutor(processes) as pool:
            _, whole = servers[0].measure(folder / "undisturbed", "nothing")
            migration, _ = servers[0].measure(folder / "undisturbed", "schema 1")
            chosen = choose(Extent(whole, migration))
            begin(len(chosen))
            left = []
            for point in chosen:
                if point.where in journal.played:
                    tell(point, *journal.played[point.where])
                else:
                    left.append(point)
            idle: queue.SimpleQueue[tuple[int, ForkServer]] = queue.SimpleQueue()
            for number, server in enumerate(servers):
                idle.put((number, server))

            def play(point: Point) -> tuple[int, Finding]:
                number, server = idle.get()
                try:
                    return server.play(folder / f"life-{number}", point)
                finally:
                    idle.put((number, server))

            for point, (struck, finding) in zip(left, pool.map(play, left), strict=True):
                journal.note(point.where, struck, finding)
                tell(point, struck, finding)
    return tally
