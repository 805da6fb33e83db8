"""Composition root of the server: registry in, answers out. Loads neither torch nor duckdb, kafka or evidently.

Three threads beside the main one: `manager` changes what is loaded, `inference` computes, `http` talks. The main thread waits for
the stop: not ready, wait for load balancers to notice, stop accepting, finish what is in flight, leave.
"""

import asyncio
import gc
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
import uvicorn

from daemon.config import Config, ServerConfig
from daemon.core.errors import ConfigError, RelearndError
from daemon.core.states import HalfKind
from daemon.registry.file_registry import FileRegistry
from daemon.runtime import memory
from daemon.runtime.files import write_whole
from daemon.runtime.health import Heartbeats
from daemon.runtime.http import listen
from daemon.runtime.priority import yielding
from daemon.runtime.signals import stop_on_signals
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.auth import ApiKeys, App, Certificates, Guard, warn_when_open_to_others
from daemon.serve.batcher import Batcher
from daemon.serve.connections import limited, look_after
from daemon.serve.endpoint_proof import Endpoint, prove
from daemon.serve.feedback import Feedback, FileSink, Sink
from daemon.serve.http_api import Service, create_app
from daemon.serve.last_good import LastGoodFile
from daemon.serve.manager import Manager
from daemon.serve.openapi import OPEN_PATHS
from daemon.serve.ort_loader import OrtLoader
from daemon.serve.readiness import Readiness
from daemon.serve.reporting import Reporter, name_of
from daemon.serve.requests import RequestIds
from daemon.serve.router import Router
from daemon.serve.shadow import Shadow
from daemon.serve.swap_report import SwapJudge
from daemon.serve.traffic import Traffic

log = structlog.get_logger(__name__)

_LOOP_LIMIT = 120.0  # seconds between two heartbeats; opening a large base takes long
_MOST_THREADS = 4  # for inference, unless asked for more
_BACKLOG = 2048  # connections
_KEEP_ALIVE = 75  # seconds; longer than load balancers keep theirs, so that they are the ones to close
_JOIN_MARGIN = 5.0  # seconds
_YIELDS = 10  # niceness: how far loading and the shadow yield to requests
_FEEDBACK_MARGIN = 15.0  # seconds for the last records to be written


def run_server(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0, or 70 when a thread of the server died. Main thread only.

    Raises ConfigError or UnavailableError when the address cannot be listened on.
    """
    with stop_on_signals() as stop:
        return serve(config, stop)


def serve(config: Config, stop: threading.Event) -> int:
    """The same until `stop` is set, from any thread."""
    memory.share_one_heap()
    server = _Server(config, stop)
    warn_when_open_to_others(config.server)
    where = config.server
    with listen(where.host, where.port, section="server", backlog=_BACKLOG) as listener:
        server.start(listener)
        gc.freeze()  # what is there by now stays: looking through it again and again would hold requests up
        with _announced(config, listener, server):
            stop.wait()
        server.drain()
        gc.unfreeze()  # the process may go on without a server
    log.info("the server has stopped", action="server_stopped")
    return RelearndError.exit_code if server.failed else 0


class _Server:
    """The parts of one server. `start` once, `drain` once after the stop; both in the order in which things must happen."""

    def __init__(self, config: Config, stop: threading.Event) -> None:
        """Raises ConfigError, before anything runs."""
        limits = config.server
        self._limits = limits
        self._stop = stop
        self._keys = ApiKeys(limits.api_keys_file) if limits.api_keys_file else None
        self._certificates = Certificates(limits.tls) if limits.tls.cert else None
        self._metrics = ServerMetrics()
        self._shadow = Shadow(self._metrics, lambda: router.busy)
        router = Router(Traffic(patience=limits.request_timeout.total_seconds()), self._shadow.overhear)
        self._endpoint = Endpoint()
        self._heartbeats = Heartbeats(time.monotonic)
        self._batcher = Batcher(
            max_batch=limits.max_batch, max_queue=limits.max_queue, on_batch=self._metrics.batch_size.observe
        )
        self._metrics.queue.set_function(lambda: self._batcher.waiting)
        self._registry = FileRegistry(config.registry.path)
        self._manager = _manager(config, self._registry, router, self._endpoint, self._shadow, self._metrics)
        self._service = Service(
            model=config.model,
            router=router,
            batcher=self._batcher,
            status=self._manager.status,
            stuck=self._heartbeats.stuck,
            metrics=self._metrics,
            limits=limits,
            stopping=stop,
            readiness=Readiness(router, self._batcher),
            ids=RequestIds(),
            feedback=_feedback(config, self._metrics),
        )
        self._threads = _Threads(stop)
        self.accepting = threading.Event()
        self.grpc_address: str | None = None

    @property
    def failed(self) -> bool:
        return bool(self._threads.failed)

    def start(self, listener: socket.socket) -> None:
        """What answers first, what changes the answers then, and who asks last."""
        self.grpc_address, self._stop_grpc = _start_grpc(self._service, self._keys, self._certificates, self._threads)
        self._end_feedback = _start_feedback(self._service.feedback, self._threads, self._heartbeats)
        self._inferring = [
            self._threads.start(name, partial(self._batcher.run, self._heartbeats.expect(name, _LOOP_LIMIT)))
            for name in _inference_threads(self._limits)
        ]
        self._start_managing(listener)
        shadowing = partial(self._shadow.run, self._stop, self._heartbeats.expect("shadow", _LOOP_LIMIT))
        self._threads.start("shadow", yielding(shadowing, by=_YIELDS))
        self._start_talking(listener)

    def _start_managing(self, listener: socket.socket) -> None:
        name = name_of(socket.gethostname(), listener.getsockname()[1])
        self._reporter = Reporter(name, self._registry, partial(datetime.now, UTC), time.monotonic)
        managing = partial(
            self._manager.run,
            self._stop,
            self._heartbeats.expect("manager", _LOOP_LIMIT),
            poll_every=self._limits.poll_every,
            tell=self._reporter.tell,
        )
        # What it opens starts threads of its own when there are to be several; those must not yield to anybody.
        later = yielding(managing, by=_YIELDS) if self._limits.threads == 1 else managing

        def body() -> None:
            """At full speed until something answers: before that there is nobody to yield to."""
            self._manager.refresh()
            later()

        self._managing = self._threads.start("manager", body)

    def _start_talking(self, listener: socket.socket) -> None:
        app = create_app(self._service)

        def accepts() -> None:
            self._endpoint.open(app)
            self.accepting.set()

        guarded = _guarded(app, self._keys, self._metrics)
        self._http = _HttpServer(guarded, self._limits, self._certificates, on_start=accepts)
        self._talking = self._threads.start("http", lambda: self._http.run([listener]))

    def drain(self) -> None:
        """Let load balancers notice, take nothing more, finish what is in flight, leave."""
        if not self._heartbeats.stuck():  # else a load that hangs may be why somebody stops us
            self._manager.leave()
        if not self.failed:
            time.sleep(self._limits.drain_delay.total_seconds())
        self._http.should_exit = True
        for talking in (self._talking, self._stop_grpc()):
            if talking is not None:
                talking.join(self._limits.drain_limit.total_seconds() + _JOIN_MARGIN)
        self._batcher.close()
        for thread in (*self._inferring, self._managing):
            thread.join(_JOIN_MARGIN)
        self._reporter.withdraw()
        self._end_feedback()


def _manager(
    config: Config, registry: FileRegistry, router: Router, endpoint: Endpoint, shadow: Shadow, metrics: ServerMetrics
) -> Manager:
    limits = config.server
    watch = limits.watch_swap.total_seconds()
    return Manager(
        config.model,
        registry=registry,
        loader=OrtLoader(
            registry,
            threads=limits.threads,
            batch=limits.max_batch,
            device=limits.device,
            scratch=limits.state.parent,
        ),
        router=router,
        judge=SwapJudge(partial(prove, endpoint), router.traffic, watch=watch, resident=memory.resident),
        last_good=LastGoodFile(limits.state),
        comparison=lambda: shadow.comparison,
        metrics=metrics,
        clock=partial(datetime.now, UTC),
        keep=limits.keep_versions,
        drain_limit=limits.drain_limit,
    )


def _inference_threads(limits: ServerConfig) -> list[str]:
    count = limits.inference_threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    return ["inference", *(f"inference-{number}" for number in range(2, count + 1))]


def _guarded(app: App, keys: ApiKeys | None, metrics: ServerMetrics) -> App:
    return Guard(app, keys, open_paths=OPEN_PATHS, on_refusal=metrics.refused) if keys else app


def _feedback(config: Config, metrics: ServerMetrics) -> Feedback | None:
    """Raises ConfigError when what the sink needs is not installed."""
    wanted = config.server.feedback
    sink: Sink
    match wanted.sink:
        case "none":
            return None
        case "file":
            sink = FileSink(wanted.path, max_file=wanted.max_file, keep=wanted.keep_files)
        case "kafka":
            with _installed("server.feedback.sink: kafka", "feedback"):
                from daemon.serve.kafka_feedback import KafkaSink
            topics = {HalfKind.PREDICTION: wanted.topic, HalfKind.LABEL: wanted.labels_topic}
            sink = KafkaSink(config.kafka, topics)
    clock = partial(datetime.now, UTC)
    return Feedback(sink, share=wanted.share, capacity=wanted.queue, clock=clock, metrics=metrics)


def _start_feedback(feedback: Feedback | None, threads: "_Threads", heartbeats: Heartbeats) -> Callable[[], None]:
    """Returns what ends it: what waits is written, as far as it can be."""
    if feedback is None:
        return lambda: None
    beat = heartbeats.expect("feedback", _LOOP_LIMIT)
    writing = threads.start("feedback", lambda: feedback.run(beat))

    def finish() -> None:
        feedback.close()
        writing.join(_FEEDBACK_MARGIN)

    return finish


def _start_grpc(
    service: Service, keys: ApiKeys | None, certificates: Certificates | None, threads: "_Threads"
) -> tuple[str | None, Callable[[], threading.Thread | None]]:
    """Where it listens, and what makes it take no more calls.

    Raises ConfigError without grpcio, UnavailableError when the port is taken.
    """
    limits = service.limits
    if limits.grpc_port is None:
        return None, lambda: None
    with _installed("server.grpc_port", "grpc"):
        from daemon.serve.grpc_api import GrpcServer
    grpc = GrpcServer(service, keys, certificates)
    talking = threads.start("grpc", grpc.run)
    address = f"{_bracketed(limits.host)}:{grpc.port.result()}"
    log.info(f"serving gRPC on {address}", action="listening_grpc", address=address)

    def stop() -> threading.Thread:
        grpc.stop()
        return talking

    return address, stop


@contextmanager
def _installed(setting: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{setting} needs {error.name}, which is not installed: pip install 'relearnd[{extra}]', or leave the setting out"
        ) from error


class _Threads:
    """Threads whose death is noticed: it is logged, and stops the server."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.failed: list[str] = []

    def start(self, name: str, body: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._watched, args=(name, body), name=name, daemon=True)
        thread.start()
        return thread

    def _watched(self, name: str, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException:  # uvicorn leaves by SystemExit
            self.failed.append(name)
            log.exception(f"the {name} thread died; the server stops", action="thread_died", thread=name)
            self._stop.set()


class _HttpServer(uvicorn.Server):
    """uvicorn on a thread of its own, where it installs no signal handlers. `on_start` is called when it accepts."""

    def __init__(
        self, app: object, limits: ServerConfig, certificates: Certificates | None, *, on_start: Callable[[], None]
    ) -> None:
        self._certificates = certificates
        self._on_start = on_start
        timeout = limits.request_timeout.total_seconds()
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                loop="uvloop",
                http=limited(seconds=timeout, idle=_KEEP_ALIVE, largest_body=limits.max_body),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ssl_certfile=limits.tls.cert,
                ssl_keyfile=limits.tls.key,
                ssl_ca_certs=str(limits.tls.client_ca) if limits.tls.client_ca else None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if limits.tls.client_ca else ssl.CERT_NONE,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=math.ceil(limits.drain_limit.total_seconds()),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl and self._certificates:
            self._certificates.guard(self.config.ssl)
        await super().startup(sockets)
        self._looking = asyncio.create_task(look_after(self.server_state.connections))
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._looking.cancel()
        await super().shutdown(sockets)


@contextmanager
def _announced(config: Config, listener: socket.socket, server: _Server) -> Iterator[None]:
    """Say where the server listens, in the log and in the ready file, from when it does until it is to stop."""
    limits = config.server
    scheme = "https" if limits.tls.cert else "http"
    address = f"{scheme}://{_bracketed(limits.host)}:{listener.getsockname()[1]}"
    lines = [address] if server.grpc_address is None else [address, server.grpc_address]
    _remove(limits.ready_file)
    server.accepting.wait(_JOIN_MARGIN)
    if limits.ready_file and server.accepting.is_set():
        limits.ready_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(limits.ready_file, "".join(f"{line}\n" for line in lines).encode())
    log.info(f"serving {config.model} on {address}", action="listening", address=address, model=config.model)
    try:
        yield
    finally:
        _remove(limits.ready_file)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _remove(ready_file: Path | None) -> None:
    if ready_file:
        ready_file.unlink(missing_ok=True)
