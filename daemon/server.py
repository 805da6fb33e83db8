"""Composition root of the server: registry in, answers out. Loads neither torch nor duckdb, kafka or evidently.

Three threads beside the main one: `manager` changes what is loaded, `inference` computes, `http` talks. The main thread waits for
the stop: not ready, wait for load balancers to notice, stop accepting, finish what is in flight, leave.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvicorn

from daemon.config import Config, ServerConfig
from daemon.core.errors import RelearndError, UnavailableError
from daemon.registry.file_registry import FileRegistry
from daemon.runtime.files import write_whole
from daemon.runtime.health import Heartbeats
from daemon.runtime.signals import stop_on_signals
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.batcher import Batcher
from daemon.serve.http_api import Service, create_app
from daemon.serve.manager import Manager
from daemon.serve.ort_loader import OrtLoader
from daemon.serve.router import Router

log = structlog.get_logger(__name__)

_LOOP_LIMIT = 120.0  # seconds between two heartbeats; opening a large base takes long
_BACKLOG = 2048  # connections
_KEEP_ALIVE = 75  # seconds; longer than load balancers keep theirs, so that they are the ones to close
_JOIN_MARGIN = 5.0  # seconds


def run_server(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0, or 70 when a thread of the server died. Main thread only.

    Raises UnavailableError when the address cannot be listened on.
    """
    with stop_on_signals() as stop:
        return serve(config, stop)


def serve(config: Config, stop: threading.Event) -> int:
    """The same until `stop` is set, from any thread."""
    limits = config.server
    registry = FileRegistry(config.registry.path)
    metrics = ServerMetrics()
    router = Router()
    heartbeats = Heartbeats(time.monotonic)
    batcher = Batcher(max_batch=limits.max_batch, max_queue=limits.max_queue, on_batch=metrics.inferred)
    manager = Manager(
        config.model,
        registry=registry,
        load=OrtLoader(registry, threads=limits.threads, batch=limits.max_batch).load_warm,
        router=router,
        metrics=metrics,
        clock=lambda: datetime.now(UTC),
        keep=limits.keep_versions,
        drain_limit=limits.drain_limit,
    )
    service = Service(
        model=config.model,
        router=router,
        batcher=batcher,
        status=manager.status,
        stuck=heartbeats.stuck,
        metrics=metrics,
        limits=limits,
        stopping=stop,
    )
    threads = _Threads(stop)
    with _listening(limits) as listener:
        http = _HttpServer(create_app(service), limits)
        inference_beat = heartbeats.expect("inference", _LOOP_LIMIT)
        manager_beat = heartbeats.expect("manager", _LOOP_LIMIT)
        inference = threads.start("inference", lambda: batcher.run(inference_beat))
        threads.start("manager", lambda: manager.run(stop, manager_beat, poll_every=limits.poll_every))
        accepting = threads.start("http", lambda: http.run([listener]))
        with _announced(limits, listener, http.accepting, config.model):
            stop.wait()
        if not threads.failed:
            time.sleep(limits.drain_delay.total_seconds())
        http.should_exit = True
        accepting.join(limits.drain_limit.total_seconds() + _JOIN_MARGIN)
        batcher.close()
        inference.join(_JOIN_MARGIN)
    log.info("the server has stopped", action="server_stopped")
    return RelearndError.exit_code if threads.failed else 0


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

    def __init__(self, app: object, limits: ServerConfig) -> None:
        self.accepting = threading.Event()
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=math.ceil(limits.drain_limit.total_seconds()),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


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
def _announced(limits: ServerConfig, listener: socket.socket, accepting: threading.Event, model: str) -> Iterator[None]:
    """Say where the server listens, in the log and in the ready file, from when it does until it is to stop."""
    host = f"[{limits.host}]" if ":" in limits.host else limits.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    _remove(limits.ready_file)
    accepting.wait(_JOIN_MARGIN)
    if limits.ready_file and accepting.is_set():
        limits.ready_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(limits.ready_file, f"{address}\n".encode())
    log.info(f"serving {model} on {address}", action="listening", address=address, model=model)
    try:
        yield
    finally:
        _remove(limits.ready_file)


def _remove(ready_file: Path | None) -> None:
    if ready_file:
        ready_file.unlink(missing_ok=True)
