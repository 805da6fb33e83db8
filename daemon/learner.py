"""Composition root of the learner: which adapters, which threads, and how they stop.

Threads: ingest (owns the consumer), cycle (owns the worker), the control API, the metrics port, the scheduler's. The main
thread waits for a stop, watches over the others and ends the process when one is dead or stuck.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.config import Config
from daemon.control.api import Views, control_app
from daemon.control.operations import Operations
from daemon.core.errors import ConfigError, DriftError, RelearndError
from daemon.core.facts import Performance
from daemon.core.types import Decision, DriftReport, ModelVersion, Progress, Run, RunSpec
from daemon.cycle import Cycle, Ports, Subject
from daemon.drift.evidently_detector import EvidentlyDetector
from daemon.ingest.consume import Ingest
from daemon.ingest.decode import Decoder
from daemon.ingest.kafka_source import KafkaSource
from daemon.policy.load import load_policy
from daemon.policy.schema import Policy
from daemon.registry.file_registry import FileRegistry
from daemon.runs.launcher import WorkerLauncher, worker_command
from daemon.runs.run_folder import RunFolder, remove_old_runs
from daemon.runtime.health import Board, Heartbeats
from daemon.runtime.http import served_on_port, served_on_socket
from daemon.runtime.inbox import Inbox
from daemon.runtime.scheduler import PolicyScheduler
from daemon.runtime.signals import stop_on_signals
from daemon.runtime.telemetry import LearnerMetrics
from daemon.serve.ort_loader import OrtScorer
from daemon.store.duckdb_store import DuckdbStore

log = structlog.get_logger(__name__)

INGEST_LIMIT = 120.0  # seconds without a beat
DRIFT_LIMIT = timedelta(seconds=120)  # for one observation, starting Evidently included
WATCH_EVERY = 0.5  # seconds
STOP_LIMIT = 30.0  # seconds for the loops to end


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Bulletin:
    """Passes on what the cycle does: to the board for operators, to the metrics for machines."""

    board: Board
    metrics: LearnerMetrics
    performance: Performance | None = None

    def enter(self, stage: str, *, run_id: str | None = None, triggers: tuple[str, ...] = ()) -> None:
        self.board.enter(stage, run_id=run_id, triggers=triggers)

    def progressed(self, progress: Progress) -> None:
        self.board.progressed(progress)

    def observed(self, drift: DriftReport | None, performance: Performance | None) -> None:
        self.performance = performance
        self.board.observed(drift)
        if performance:
            self.metrics.current_accuracy.set(performance.accuracy)
        if drift is None:
            return
        self.board.report("drift", "ok", drift.detail)
        self.metrics.drifted.set(drift.drifted)
        for column in drift.columns:
            if column.score is not None:
                self.metrics.drift_score.labels(column.column).set(column.score)

    def drift_failed(self, error: DriftError) -> None:
        self.metrics.drift_errors.inc()
        self.board.report("drift", "degraded", str(error))

    def decided(self, decision: Decision) -> None:
        self.metrics.decisions.labels(decision.action).inc()
        for gate in decision.verdict.gates if decision.verdict else ():
            self.metrics.gates.labels(gate.gate, gate.outcome).inc()

    def run_ended(self, run: Run) -> None:
        self.metrics.runs.labels(run.state).inc()
        if run.finished_at:
            self.metrics.run_seconds.observe((run.finished_at - run.created_at).total_seconds())

    def promoted(self, version: ModelVersion) -> None:
        self.metrics.champion.set(version.number)


@dataclass
class PolicyFile:
    """The policy of this cycle: the file as it is now, or, while it is not valid, as it was last."""

    path: Path
    current: Policy
    board: Board
    metrics: LearnerMetrics

    def read_again(self) -> Policy:
        try:
            self.current = load_policy(self.path)
            self.metrics.policy_reload_ok.set(1)
            self.board.report("policy", "ok", str(self.path))
        except ConfigError as error:
            if self.board.components["policy"].detail != str(error):
                log.error(f"policy not taken, the last valid one stays: {error}", action="policy_refused")
            self.metrics.policy_reload_ok.set(0)
            self.board.report("policy", "degraded", str(error))
        return self.current


class Learner:
    """One learner, open. Use `open_learner`."""

    def __init__(self, config: Config, store: DuckdbStore, source: KafkaSource, detector: EvidentlyDetector) -> None:
        self.config = config
        self.store = store
        self.detector = detector
        self.metrics = LearnerMetrics()
        self.board = Board(now)
        self.inbox = Inbox()
        self.heartbeats = Heartbeats(time.monotonic)
        self.scheduler = PolicyScheduler(self.inbox)
        self.bulletin = Bulletin(self.board, self.metrics)
        self.policy = PolicyFile(config.policy, load_policy(config.policy), self.board, self.metrics)
        self.board.report("policy", "ok", str(config.policy))
        self.registry = FileRegistry.open_for_writing(config.registry.path)
        self.launcher = WorkerLauncher(worker_command(config.worker.python), nice=config.worker.nice)
        self.ingest = Ingest(
            source,
            store,
            self._decoder(self.policy.current),
            metrics=self.metrics,
            clock=now,
            rng=random.Random(),
            poll_timeout=config.kafka.poll_timeout.total_seconds(),
        )
        self.cycle = Cycle(self._ports(), self._subject(), self.bulletin, self._prepare_folder)
        self.operations = Operations(
            model=config.model,
            store=store,
            registry=self.registry,
            clock=now,
            ask_for_run=self.inbox.operator,
            cancel_run=self.launcher.cancel,
            policy_hash=lambda: self.policy.current.hash,
            changed=self.inbox.observe,
            lock=threading.Lock(),
        )

    def _decoder(self, policy: Policy) -> Decoder:
        return Decoder(
            fields=self.config.kafka.fields,
            labels=frozenset(self.config.task.labels),
            records=policy.records,
            splits=self.config.splits,
            max_record=self.config.kafka.max_record,
        )

    def _ports(self) -> Ports:
        return Ports(
            store=self.store,
            registry=self.registry,
            detector=self.detector,
            scorer=OrtScorer(self.registry, threads=1),
            trainer=self.launcher,
            clock=now,
        )

    def _subject(self) -> Subject:
        return Subject(
            model=self.config.model,
            task=self.config.task.kind,
            base=self.config.task.base,
            labels=tuple(self.config.task.labels),
            max_tokens=self.config.task.max_tokens,
            registry=self.config.registry.path.absolute(),
            runs=self.config.runs.path.absolute(),
            code_version=version("relearnd"),
        )

    def _prepare_folder(self, spec: RunSpec, policy: Policy) -> Path:
        folder = RunFolder(self.config.runs.path.absolute() / spec.run_id)
        folder.write_request(spec, policy)
        remove_old_runs(self.config.runs.path, keep=self.config.runs.keep)
        return folder.path

    # --- loops ----------------------------------------------------------------------------------------------------

    def follow_policy(self) -> Policy:
        """Read the policy file, and let every part that goes by it know."""
        policy = self.policy.read_again()
        self.scheduler.follow(policy)
        self.ingest.decoder = self._decoder(policy)
        return policy

    def learn(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        """The cycle loop: one cycle for each time the inbox has something."""
        self.cycle.resume()
        self.follow_policy()
        while not stop.is_set():
            beat()
            requests = self.inbox.take(timeout=WATCH_EVERY)
            if requests is not None:
                self.cycle.run(self.follow_policy(), requests)
            self._update_gauges()

    def _update_gauges(self) -> None:
        champion = self.registry.aliases(self.config.model).champion
        self.metrics.champion.set(champion or 0)
        self.metrics.paused.set(bool(self.store.get("paused")))
        if champion:
            newest = self.registry.version(self.config.model, champion).lineage.newest_occurred_at
            self.metrics.freshness.set((now() - newest).total_seconds() if newest else float("nan"))

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def control(self) -> Starlette:
        views = Views(
            model=self.config.model,
            store=self.store,
            registry=self.registry,
            board=self.board,
            lag=lambda: {f"{p.topic}[{p.partition}]": lag for p, lag in self.ingest.lag().items()},
            performance=lambda: self.bulletin.performance,
        )
        return control_app(views, self.operations)

    def health(self) -> Starlette:
        """/livez: every loop beats. /readyz: no component has failed. /metrics."""

        def livez(_: Request) -> Response:
            stuck = self.heartbeats.stuck()
            return JSONResponse({"stuck": dict(stuck)}, 503 if stuck else 200)

        def readyz(_: Request) -> Response:
            states = {name: component.state for name, component in self.board.components.items()}
            return JSONResponse(states, 503 if "failed" in states.values() else 200)

        def metrics(_: Request) -> Response:
            return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

        return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


@contextmanager
def open_learner(config: Config) -> Iterator[Learner]:
    """Everything open, nothing running yet; closed in the reverse order."""
    with ExitStack() as stack:
        store = DuckdbStore.open(
            config.store.path, memory_limit=config.store.memory_limit, threads=config.store.threads
        )
        stack.callback(store.close)
        source = KafkaSource(config.kafka)
        stack.callback(source.close)
        detector = EvidentlyDetector(timeout=DRIFT_LIMIT)
        stack.callback(detector.close)
        yield Learner(config, store, source, detector)


def run_learner(config: Config) -> int:
    """Learn until SIGTERM or SIGINT, then finish the open batch and return 0; another code when a part has failed."""
    with stop_on_signals() as stop, open_learner(config) as learner, ExitStack() as stack:
        stack.enter_context(served_on_socket(learner.control(), config.control.socket))
        stack.enter_context(served_on_port(learner.health(), config.metrics.host, config.metrics.port))
        learner.scheduler.start()
        stack.callback(learner.scheduler.stop)
        loops = [
            _Loop("ingest", stop, learner.ingest.run, learner.heartbeats.expect("ingest", INGEST_LIMIT)),
            _Loop("cycle", stop, learner.learn, learner.heartbeats.expect("cycle", float("inf"))),
        ]
        log.info(f"learning {config.model} from {', '.join(config.kafka.topics)}", action="learner_started")
        _wait(stop, loops, learner.heartbeats)
        stop.set()
        _cancel_until_ended(learner, loops)
        return max(loop.exit_code for loop in loops)


class _Loop:
    """A loop on a thread of its own; remembers what ended it."""

    def __init__(self, name: str, stop: threading.Event, run: Callable[..., None], beat: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guard, args=(run, stop, beat), name=name, daemon=True)
        self._thread.start()

    def _guard(self, run: Callable[..., None], stop: threading.Event, beat: Callable[[], None]) -> None:
        try:
            run(stop, beat)
        except BaseException as error:
            self._error = error
            log.critical(f"the {self._thread.name} loop died: {error}", action="loop_died", exc_info=error)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def exit_code(self) -> int:
        """Of the process, if it were for this loop alone."""
        if self._error is None:
            return 70 if self._thread.is_alive() else 0
        return self._error.exit_code if isinstance(self._error, RelearndError) else 70


def _wait(stop: threading.Event, loops: list[_Loop], heartbeats: Heartbeats) -> None:
    """Until a stop is asked for, a loop has died, or one is stuck."""
    while not stop.wait(WATCH_EVERY):
        stuck = heartbeats.stuck()
        if stuck:
            log.critical(f"stuck: {stuck}", action="loop_stuck")
        if stuck or not all(loop.alive for loop in loops):
            return


def _cancel_until_ended(learner: Learner, loops: list[_Loop]) -> None:
    """Again and again, because a cycle on its way to a run starts it after the first cancel."""
    deadline = time.monotonic() + STOP_LIMIT
    while any(loop.alive for loop in loops) and time.monotonic() < deadline:
        learner.launcher.cancel()
        time.sleep(0.1)
