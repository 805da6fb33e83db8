"""A manager over a registry in memory and a loader that does as it is told: `refresh` is the thread's one pass."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from daemon.core.artefact import Golden
from daemon.core.errors import ArtefactError, ExpiredError
from daemon.core.types import ModelVersion, Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.last_good import LastGoodFile
from daemon.serve.manager import Manager, ServingStatus
from daemon.serve.router import Loaded, Router
from daemon.serve.swap_report import GoldenProof, SwapJudge
from daemon.serve.traffic import Traffic
from daemon.testing.registry import InMemoryRegistry
from tests.artefacts import MODEL, NOON, paper_run

GOLDEN = Golden(["good"], [[1.0, 2.0]], 1e-3)


class Answering:
    def __init__(self, number: int) -> None:
        self.number = number

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(text)] for text in texts]

    def infer(self, rows: Sequence[Sequence[int]]) -> list[Prediction]:
        return [Prediction(f"{self.number}", 1.0, [1.0])] * len(rows)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        return [Prediction(f"{self.number}", 1.0, [1.0])] * len(texts)


WATCH, PATIENCE = 5.0, 10.0  # seconds


class Bench:
    """`now` is the traffic's clock, in seconds; `wrong` are versions whose endpoint answers other than the judge saw, `full` those
    for whose golden texts there is no room."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.registry = InMemoryRegistry()
        self.now = 100.0
        self.router = Router(Traffic(lambda: self.now, patience=PATIENCE))
        self.wrong: set[int] = set()
        self.full: set[int] = set()
        self.unloads = 0
        self.state = folder / "state.json"
        self.metrics = ServerMetrics()
        self.broken: dict[int, Exception] = {}
        self.loads: list[int] = []
        self.proved: list[int] = []
        self.during_load = lambda: None
        self.keep = keep
        self.start()

    def start(self) -> None:
        """As a process does: with nothing but the registry and the file of the last good version."""
        self.manager = Manager(
            MODEL,
            registry=self.registry,
            loader=self,
            router=self.router,
            judge=SwapJudge(self.prove, self.router.traffic, watch=WATCH, resident=lambda: 1000 + len(self.loads)),
            last_good=LastGoodFile(self.state),
            comparison=lambda: None,
            metrics=self.metrics,
            clock=lambda: NOON,
            keep=self.keep,
            drain_limit=timedelta(0),
        )

    def prove(self, version: ModelVersion, golden: Golden) -> GoldenProof:
        self.proved.append(version.number)
        if version.number in self.full:
            return GoldenProof(version.golden_sha256, len(golden.texts), None, None, "no room")
        return GoldenProof(version.golden_sha256, len(golden.texts), version.number not in self.wrong, 0.0, "far off")

    def unloaded(self) -> None:
        self.unloads += 1

    def ask(self, number: int | None = None, *, seconds: float = 0.001, failing: bool = False) -> int:
        """One request; who answered it."""
        with suppress(ArtefactError), self.router.handle(number) as handle:
            self.now += seconds
            if failing:
                raise ArtefactError("the graph cannot be run")
        return handle.version.number

    def wait_in_vain(self, times: int, *numbers: int, seconds: float = PATIENCE) -> None:
        """That long each, from the same moment on; for each of these versions, or for the champion."""
        handles = [self.router.handle(number) for number in numbers or (None,) for _ in range(times)]
        self.now += seconds
        for handle in handles:
            handle.__exit__(ExpiredError, ExpiredError("no answer"), None)

    def load_warm(self, version: ModelVersion) -> Loaded:
        self.loads.append(version.number)
        self.during_load()
        if version.number in self.broken:
            raise self.broken[version.number]
        return Loaded(Answering(version.number), GOLDEN)

    def add(self, count: int) -> None:
        for _ in range(count):
            run = paper_run(Path(f"run-{len(self.registry.versions(MODEL))}"))
            self.registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=NOON)

    def promote(self, number: int) -> None:
        aliases = self.registry.aliases(MODEL)
        self.registry.move(MODEL, replace(aliases, champion=number, previous=aliases.champion))

    def settle(self, versions: int) -> None:
        """So many more versions, the first of all answering and the watch over that swap ended."""
        self.add(versions)
        self.promote(1)
        self.refresh()
        self.watched()

    def watched(self) -> ServingStatus:
        """Once the watch over a swap has ended."""
        self.now += WATCH
        return self.refresh()

    def refresh(self) -> ServingStatus:
        self.manager.refresh()
        return self.manager.status()

    def promote_in(self, registry: InMemoryRegistry, number: int) -> None:
        self.registry = registry
        self.promote(number)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"relearnd_{name}", labels)


class Unreadable:
    """A registry whose disk is gone."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        def fail(*_: object) -> object:
            raise ArtefactError(f"{name} cannot be read")

        return fail
