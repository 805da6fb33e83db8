"""Composition root of the learner: which adapters, which threads, and how they stop.

Threads: ingest (owns the consumer), cycle (owns the worker), upkeep, the control API, the metrics port, the scheduler's. The
main thread waits for a stop, watches over the others and ends the process when one is dead or stuck.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.config import Config, DiskConfig, RetentionConfig
from daemon.control.api import Views, control_app
from daemon.control.data import DataOperations
from daemon.control.data_api import data_routes
from daemon.control.operations import Operations
from daemon.core.errors import ArtefactError, ConfigError, NotFoundError, RelearndError, RunPutOff
from daemon.core.facts import Performance
from daemon.core.states import Alias, Split
from daemon.core.types import STOP, Decision, DriftReport, ModelVersion, Progress, Run, RunSpec
from daemon.core.upkeep import Retention
from daemon.cycle import Cycle, Ports, Subject
from daemon.drift.evidently_detector import EvidentlyDetector
from daemon.ingest.decode import Parse
from daemon.ingest.kafka_letters import KafkaLetters
from daemon.ingest.kafka_source import KafkaSource
from daemon.ingest.outbox import Outbox
from daemon.ingest.strict_json import parse_object
from daemon.intake import Intake, parser
from daemon.policy.load import load_policy
from daemon.policy.schema import Policy
from daemon.registry.file_registry import FileRegistry
from daemon.runs.anchor import Anchor, pinned_anchor
from daemon.runs.launcher import WorkerLauncher, worker_command
from daemon.runs.run_folder import RunFolder, erase_data, remove_old_runs
from daemon.runtime.code import code_version
from daemon.runtime.disk import Limits, refuse_network
from daemon.runtime.health import Board, Heartbeats
from daemon.runtime.http import served_on_port, served_on_socket
from daemon.runtime.inbox import Inbox, Requests
from daemon.runtime.loops import Loop
from daemon.runtime.readings import Readings
from daemon.runtime.scheduler import PolicyScheduler
from daemon.runtime.signals import stop_on_signals
from daemon.runtime.subjects import SubjectKey
from daemon.runtime.telemetry import LearnerMetrics
from daemon.runtime.throughput import prepare_for_a_stream
from daemon.serve.ort_loader import OrtScorer
from daemon.store.duckdb_store import DuckdbStore
from daemon.store.keeper import DuckdbKeeper
from daemon.upkeep.disk_watch import DiskWatch
from daemon.upkeep.housekeeping import Housekeeping
from daemon.upkeep.room_for_runs import RoomForRuns
from daemon.upkeep.server_watch import ServerWatch

log = structlog.get_logger(__name__)

INGEST_LIMIT = 120.0  # seconds without a beat
UPKEEP_LIMIT = 3600.0  # the same; an erasure rewrites the whole store
OUTBOX_LIMIT = 300.0  # the same; a batch that is not taken is waited for, letter by letter
DRIFT_LIMIT = timedelta(seconds=120)  # for one observation, starting Evidently included
WATCH_EVERY = 0.5  # seconds
ANCHOR_FACT = "anchor_sha256"
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

    def observed(self, drift: DriftReport | None, performance: Performance | None, late_examples: int) -> None:
        self.performance = performance
        self.metrics.late_examples.set(late_examples)
        self.board.observed(drift)
        self.metrics.current_accuracy.set(performance.accuracy if performance else math.nan)
        self.metrics.drifted.set(drift.drifted if drift else math.nan)
        if drift is None:
            return
        self.board.report("drift", "ok", drift.detail)
        for column in drift.columns:
            if column.score is not None:
                self.metrics.drift_score.labels(column.column).set(column.score)

    def drift_failed(self, error: RelearndError) -> None:
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

    def __init__(
        self,
        config: Config,
        store: DuckdbStore,
        source: KafkaSource,
        detector: EvidentlyDetector,
        parse: Parse = parse_object,
    ) -> None:
        self.config = config
        self.store = store
        self.detector = detector
        self.metrics = LearnerMetrics()
        self.board = Board(now)
        self.inbox = Inbox()
        self._enough_to_start = False
        self.subject_key = SubjectKey.read(config.store.subject_key_file) if config.store.subject_key_file else None
        self.heartbeats = Heartbeats(time.monotonic)
        self.scheduler = PolicyScheduler(self.inbox)
        self.bulletin = Bulletin(self.board, self.metrics)
        self.policy = PolicyFile(config.policy, load_policy(config.policy), self.board, self.metrics)
        self.board.report("policy", "ok", str(config.policy))
        self.registry = FileRegistry.open_for_writing(config.registry.path)
        self.launcher = WorkerLauncher(worker_command(config.worker.python), nice=config.worker.nice)
        self.source = source
        self.anchor = self._pinned_anchor()
        self.keeper = DuckdbKeeper(store)
        self.disk = DiskWatch(
            config.store.path.absolute(),
            {"registry": config.registry.path.absolute(), "runs": config.runs.path.absolute()},
            disk_limits(config.store.disk),
            self.metrics,
            lambda state, detail: self.board.report("disk", state, detail),
        )
        self.intake = Intake(
            config,
            self.policy.current,
            store,
            source,
            parse=parse,
            hash_of=self.subject_key.hash_of if self.subject_key else None,
            clock=now,
            metrics=self.metrics,
            held=lambda: self.disk.stops_ingest,
            tell=lambda state, detail: self.board.report("ingest", state, detail),
        )
        self.ingest = self.intake.ingest
        self.cycle = Cycle(self._ports(), self._subject(), self.bulletin, self._prepare_folder)
        self.room_for_runs = self._room_for_runs()
        self.servers = self._server_watch()
        self.readings = self._readings()
        self.operations = self._operations()
        self.data = self._data_operations()
        self.housekeeping = self._housekeeping()

    def _housekeeping(self) -> Housekeeping:
        return Housekeeping(
            self.keeper,
            retention_of(self.config.store.retention),
            now,
            self.metrics,
            monotonic=time.monotonic,
            aliases_of_run=self._aliases_of_run,
            finish_erasures=self.data.finish_erasures,
            tell=lambda state, detail: self.board.report("housekeeping", state, detail),
        )

    def _room_for_runs(self) -> RoomForRuns:
        return RoomForRuns(
            self.store,
            now,
            lack=lambda: self.disk.lack,
            cancel_run=self.launcher.cancel,
            policy_hash=lambda: self.policy.current.hash,
        )

    def _server_watch(self) -> ServerWatch:
        return ServerWatch(
            self.registry,
            self.config.model,
            now,
            tell=lambda state, detail: self.board.report("servers", state, detail),
            changed=self.inbox.observe,
        )

    def _readings(self) -> Readings:
        return Readings(
            {"stream": self._read_stream, "registry": self._read_registry, "store": self._read_store},
            lambda source: self.metrics.gauge_errors.labels(source).inc(),
        )

    def outbox(self, topic: str) -> Outbox:
        return Outbox(
            self.store,
            KafkaLetters(self.config.kafka, topic),
            clock=now,
            rng=random.Random(),
            metrics=self.metrics,
            tell=lambda state, detail: self.board.report("dead_letter_topic", state, detail),
        )

    def _operations(self) -> Operations:
        return Operations(
            model=self.config.model,
            store=self.store,
            registry=self.registry,
            clock=now,
            cancel_run=self.launcher.cancel,
            policy_hash=lambda: self.policy.current.hash,
            changed=self.inbox.observe,
            lock=threading.Lock(),
            acceptance=self.intake.acceptance,
            accept=self.intake.accept,
            let_ingest_go_on=self.intake.breaker.resume,
        )

    def _data_operations(self) -> DataOperations:
        return DataOperations(
            model=self.config.model,
            store=self.store,
            keeper=self.keeper,
            registry=self.registry,
            clock=now,
            policy_hash=lambda: self.policy.current.hash,
            redrive_letters=self.intake.redriven,
            hash_of=self.subject_key.hash_of if self.subject_key and self.config.kafka.fields.subject else None,
            strings_of=self.intake.strings,
            erase_run_data=lambda run_id: erase_data(self.config.runs.path.absolute() / run_id),
            cancel_run=self.launcher.cancel,
            forgotten=self.metrics.erasures.inc,
            lock=threading.Lock(),
        )

    def _aliases_of_run(self, run_id: str) -> list[str]:
        aliases = self.registry.aliases(self.config.model)
        versions = [each for each in self.registry.versions(self.config.model) if each.lineage.run_id == run_id]
        return [alias for alias in Alias for each in versions if getattr(aliases, alias) == each.number]

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
            code_version=code_version(),
            anchor_sha256=self.anchor.sha256 if self.anchor else "",
        )

    def _pinned_anchor(self) -> Anchor | None:
        task = self.config.task
        if task.anchor is None:
            return None
        anchor = pinned_anchor(task.anchor, task.anchor_sha256, self.store.get(ANCHOR_FACT))
        self.store.put(ANCHOR_FACT, anchor.sha256)
        return anchor

    def _prepare_folder(self, spec: RunSpec, policy: Policy) -> Path:
        folder = RunFolder(self.config.runs.path.absolute() / spec.run_id)
        if self.anchor:
            self.anchor.copy_to(folder.data)
        folder.write_request(spec, policy)
        remove_old_runs(self.config.runs.path, keep=self.config.runs.keep)
        return folder.path

    # --- loops ----------------------------------------------------------------------------------------------------

    def follow_policy(self) -> Policy:
        """Read the policy file, and let every part that goes by it know."""
        policy = self.policy.read_again()
        self.scheduler.follow(policy)
        self.intake.follow(policy)
        return policy

    def learn(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        """The cycle loop: one cycle for each time the inbox has something."""
        self.cycle.resume()
        self.follow_policy()
        while not stop.is_set():
            beat()
            if self.disk.stops_training:
                stop.wait(WATCH_EVERY)
                continue
            self._notice_first_examples()
            requests = self.inbox.take(timeout=WATCH_EVERY)
            if requests is not None:
                self._run_cycle(requests)

    def keep_up(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        """The upkeep loop: beside the cycle, which sees nothing for as long as a run takes."""
        while not stop.is_set():
            beat()
            self.disk.look()
            self.room_for_runs.look()
            self.servers.look()
            self.housekeeping.in_a_quiet_moment()
            stop.wait(WATCH_EVERY)

    def _run_cycle(self, requests: Requests) -> None:
        """A registry that cannot be read ends this cycle and not the learner: ingest goes on, and so does the next cycle."""
        try:
            self.cycle.run(self.follow_policy(), requests)
        except (ArtefactError, NotFoundError) as error:
            self.inbox.put_back(requests)
            log.error(f"this cycle ends early: {error}", action="registry_not_read")
            self.board.report("registry", "failed", str(error))
        else:
            self.board.report("registry", "ok", str(self.config.registry.path))

    def _notice_first_examples(self) -> None:
        """Wake the cycle, once, when there is enough for a first version: nobody should wait for the next observation."""
        needed = self.policy.current.triggers.bootstrap.min_examples
        if not self._enough_to_start and self.store.counts().by_split.get(Split.TRAIN, 0) >= needed:
            self._enough_to_start = True
            self.inbox.observe()

    def _read_stream(self) -> None:
        self.metrics.consumer_lag.clear()  # of a partition that is not read, or goes by another name now, nobody knows
        for partition, lag in self.ingest.lag().items():
            self.metrics.consumer_lag.labels(partition.topic, partition.partition).set(lag)
        self.metrics.ingest_paused.labels("checks").set(self.intake.breaker.held())
        self.metrics.ingest_paused.labels("disk").set(self.disk.stops_ingest)

    def _read_registry(self) -> None:
        number = self.registry.aliases(self.config.model).champion
        champion = self.registry.version(self.config.model, number) if number else None
        self.metrics.servers.set(len(self.servers.reports()))
        self.metrics.servers_refusing.set(self.servers.refusing())
        self.metrics.champion.set(number or 0)
        if champion:
            newest = champion.lineage.newest_occurred_at
            self.metrics.freshness.set((now() - newest).total_seconds() if newest else math.nan)

    def _read_store(self) -> None:
        self.metrics.paused.set(bool(self.store.get("paused")))

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def control(self) -> Starlette:
        views = Views(
            model=self.config.model,
            store=self.store,
            registry=self.registry,
            board=self.board,
            servers=self.servers.reports,
            lag=lambda: {f"{p.topic}[{p.partition}]": lag for p, lag in self.ingest.lag().items()},
            performance=lambda: self.bulletin.performance,
            label_delays=self.intake.curator.label_delays,
        )
        return control_app(views, self.operations, data_routes(self.data))

    def health(self) -> Starlette:
        """/livez: every loop beats. /readyz: no component has failed. /metrics."""

        def livez(_: Request) -> Response:
            stuck = self.heartbeats.stuck()
            return JSONResponse({"stuck": dict(stuck)}, 503 if stuck else 200)

        def readyz(_: Request) -> Response:
            states = {name: component.state for name, component in self.board.components.items()}
            return JSONResponse(states, 503 if "failed" in states.values() else 200)

        def metrics(_: Request) -> Response:
            self.readings.take()
            return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

        return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


def retention_of(config: RetentionConfig) -> Retention:
    return Retention(config.keep_for, config.keep_examples, config.keep_waits, config.keep_details)


def disk_limits(config: DiskConfig) -> Limits:
    return Limits(config.warn_below, config.stop_training_below, config.stop_ingest_below)


@contextmanager
def open_learner(config: Config) -> Iterator[Learner]:
    """Everything open, nothing running yet; closed in the reverse order."""
    with ExitStack() as stack:
        if not config.store.allow_network:
            refuse_network(config.store.path)
        store = DuckdbStore.open(
            config.store.path, memory_limit=config.store.memory_limit, threads=config.store.threads
        )
        stack.callback(store.close)
        source = KafkaSource(config.kafka, store_id=store.identity())
        stack.callback(source.close)
        detector = EvidentlyDetector(timeout=DRIFT_LIMIT)
        stack.callback(detector.close)
        yield Learner(config, store, source, detector, stack.enter_context(parser(config)))


def run_learner(config: Config) -> int:
    """Learn until SIGTERM or SIGINT, then finish the open batch and return 0; another code when a part has failed."""
    with stop_on_signals() as stop, open_learner(config) as learner, ExitStack() as stack:
        stack.enter_context(served_on_socket(learner.control(), config.control.socket))
        stack.enter_context(served_on_port(learner.health(), config.metrics.host, config.metrics.port))
        prepare_for_a_stream()
        learner.scheduler.start()
        stack.callback(learner.scheduler.stop)
        held_up = learner.keeper.holds_up_writers
        loops = [
            Loop(
                "ingest", stop, learner.ingest.run, learner.heartbeats.expect("ingest", INGEST_LIMIT, held_up=held_up)
            ),
            Loop("cycle", stop, learner.learn, learner.heartbeats.expect("cycle", float("inf"))),
            Loop("upkeep", stop, learner.keep_up, learner.heartbeats.expect("upkeep", UPKEEP_LIMIT)),
        ]
        if topic := config.kafka.dead_letter_topic:
            beat = learner.heartbeats.expect("outbox", OUTBOX_LIMIT, held_up=held_up)
            loops.append(Loop("outbox", stop, learner.outbox(topic).run, beat))
        log.info(f"learning {config.model} from {', '.join(config.kafka.all_topics)}", action="learner_started")
        _wait(stop, loops, learner.heartbeats)
        stop.set()
        _cancel_until_ended(learner, loops)
        return max(loop.exit_code for loop in loops)


def _wait(stop: threading.Event, loops: list[Loop], heartbeats: Heartbeats) -> None:
    """Until a stop is asked for, a loop has died, or one is stuck."""
    while not stop.wait(WATCH_EVERY):
        stuck = heartbeats.stuck()
        if stuck:
            log.critical(f"stuck: {stuck}", action="loop_stuck")
        if stuck or not all(loop.alive for loop in loops):
            return


def _cancel_until_ended(learner: Learner, loops: list[Loop]) -> None:
    """Again and again, because a cycle on its way to a run starts it after the first cancel."""
    deadline = time.monotonic() + STOP_LIMIT
    while any(loop.alive for loop in loops) and time.monotonic() < deadline:
        learner.launcher.cancel(why=RunPutOff("the learner was stopped", by=STOP))
        time.sleep(0.1)
