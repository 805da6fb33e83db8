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
from daemon.core.errors import ConfigError, RelearndError, UnavailableError
from daemon.core.states import HalfKind
from daemon.registry.file_registry import FileRegistry
from daemon.runtime import memory
from daemon.runtime.files import write_whole
from daemon.runtime.health import Heartbeats
from daemon.runtime.priority import yielding
from daemon.runtime.signals import stop_on_signals
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.auth import ApiKeys, App, Guard, tls_files, warn_when_open_to_others
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

    Raises UnavailableError when the address cannot be listened on.
    """
    with stop_on_signals() as stop:
        return serve(config, stop)


def serve(config: Config, stop: threading.Event) -> int:
    """The same until `stop` is set, from any thread."""
    memory.share_one_heap()
    limits = config.server
    tls_files(limits.tls)
    keys = ApiKeys(limits.api_keys_file) if limits.api_keys_file else None
    warn_when_open_to_others(limits)
    metrics = ServerMetrics()
    shadow = Shadow(metrics, lambda: router.busy)
    router = Router(Traffic(), shadow.overhear)
    endpoint = Endpoint()
    heartbeats = Heartbeats(time.monotonic)
    batcher = Batcher(max_batch=limits.max_batch, max_queue=limits.max_queue, on_batch=metrics.inferred)
    manager = _manager(config, router, endpoint, shadow, metrics)
    service = Service(
        model=config.model,
        router=router,
        batcher=batcher,
        status=manager.status,
        stuck=heartbeats.stuck,
        metrics=metrics,
        limits=limits,
        stopping=stop,
        readiness=Readiness(router, batcher),
        ids=RequestIds(),
        feedback=_feedback(config, metrics),
    )
    threads = _Threads(stop)
    with _listening(limits) as listener:
        grpc_address, stop_grpc = _start_grpc(service, keys, threads)
        end_feedback = _start_feedback(service.feedback, threads, heartbeats)
        app = create_app(service)
        http = _HttpServer(_guarded(app, keys, metrics), limits, on_start=lambda: endpoint.open(app))
        manager_beat = heartbeats.expect("manager", _LOOP_LIMIT)
        inferring = [
            threads.start(name, partial(batcher.run, heartbeats.expect(name, _LOOP_LIMIT)))
            for name in _inference_threads(limits)
        ]
        managing = partial(manager.run, stop, manager_beat, poll_every=limits.poll_every)
        # What it opens starts threads of its own when there are to be several; those must not yield to anybody.
        threads.start("manager", yielding(managing, by=_YIELDS) if limits.threads == 1 else managing)
        shadowing = partial(shadow.run, stop, heartbeats.expect("shadow", _LOOP_LIMIT))
        threads.start("shadow", yielding(shadowing, by=_YIELDS))
        accepting = threads.start("http", lambda: http.run([listener]))
        gc.freeze()  # what is there by now stays: looking through it again and again would hold requests up
        with _announced(limits, listener, grpc_address, http.accepting, config.model):
            stop.wait()
        if not threads.failed:
            time.sleep(limits.drain_delay.total_seconds())
        http.should_exit = True
        for talking in (accepting, stop_grpc()):
            if talking is not None:
                talking.join(limits.drain_limit.total_seconds() + _JOIN_MARGIN)
        batcher.close()
        for inference in inferring:
            inference.join(_JOIN_MARGIN)
        end_feedback()
    log.info("the server has stopped", action="server_stopped")
    return RelearndError.exit_code if threads.failed else 0


def _manager(config: Config, router: Router, endpoint: Endpoint, shadow: Shadow, metrics: ServerMetrics) -> Manager:
    limits, registry = config.server, FileRegistry(config.registry.path)
    watch = limits.watch_swap.total_seconds()
    return Manager(
        config.model,
        registry=registry,
        loader=OrtLoader(registry, threads=limits.threads, batch=limits.max_batch, device=limits.device),
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
    service: Service, keys: ApiKeys | None, threads: "_Threads"
) -> tuple[str | None, Callable[[], threading.Thread | None]]:
    """Where it listens, and what makes it take no more calls.

    Raises ConfigError without grpcio, UnavailableError when the port is taken.
    """
    limits = service.limits
    if limits.grpc_port is None:
        return None, lambda: None
    with _installed("server.grpc_port", "grpc"):
        from daemon.serve.grpc_api import GrpcServer
    grpc = GrpcServer(service, keys, limits.tls)
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
    """uvicorn on a thread of its own, where it installs no signal handlers; says when it accepts."""

    def __init__(self, app: object, limits: ServerConfig, *, on_start: Callable[[], None]) -> None:
        self.accepting = threading.Event()
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
        await super().startup(sockets)
        self._looking = asyncio.create_task(look_after(self.server_state.connections))
        self._on_start()
        self.accepting.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._looking.cancel()
        await super().shutdown(sockets)


@contextmanager
def _listening(limits: ServerConfig) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in limits.host else socket.AF_INET
    try:
        listener = socket.create_server((limits.host, limits.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {limits.host}:{limits.port}: {error.strerror or error}; see server.host and server.port"
        ) from error
    with listener:
        yield listener


@contextmanager
def _announced(
    limits: ServerConfig, listener: socket.socket, grpc_address: str | None, accepting: threading.Event, model: str
) -> Iterator[None]:
    """Say where the server listens, in the log and in the ready file, from when it does until it is to stop."""
    scheme = "https" if limits.tls.cert else "http"
    address = f"{scheme}://{_bracketed(limits.host)}:{listener.getsockname()[1]}"
    lines = [address] if grpc_address is None else [address, grpc_address]
    _remove(limits.ready_file)
    accepting.wait(_JOIN_MARGIN)
    if limits.ready_file and accepting.is_set():
        limits.ready_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(limits.ready_file, "".join(f"{line}\n" for line in lines).encode())
    log.info(f"serving {model} on {address}", action="listening", address=address, model=model)
    try:
        yield
    finally:
        _remove(limits.ready_file)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _remove(ready_file: Path | None) -> None:
    if ready_file:
        ready_file.unlink(missing_ok=True)
