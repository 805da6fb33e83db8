"""A small HTTP server on a thread: uvicorn, for what a process says of itself."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from daemon.core.errors import ConfigError, UnavailableError

_LONGEST_SOCKET_PATH = 107  # bytes, Linux
_START_SECONDS = 10.0


@contextmanager
def served_on_socket(app: Starlette, path: Path) -> Iterator[None]:
    """Serve on a unix socket that only its owner can open."""
    if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"control.socket: '{path}' has {len(str(path).encode())} bytes, a unix socket path at most "
            f"{_LONGEST_SOCKET_PATH}; give a shorter one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)  # never open to others, not even between bind and chmod
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    with _serving(uvicorn.Config(app, log_level="warning", lifespan="off"), str(path), [listener]):
        yield
    path.unlink(missing_ok=True)


@contextmanager
def served_on_port(app: Starlette, host: str, port: int) -> Iterator[None]:
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", lifespan="off")
    with _serving(config, f"{host}:{port}", None):
        yield


@contextmanager
def _serving(config: uvicorn.Config, where: str, sockets: list[socket.socket] | None) -> Iterator[None]:
    server = uvicorn.Server(config)
    failed = threading.Event()

    def run() -> None:
        try:
            server.run(sockets)
        except SystemExit:  # uvicorn's way of saying that it could not bind; it has logged why
            failed.set()

    thread = threading.Thread(target=run, name=f"http {where}", daemon=True)
    thread.start()
    waited = 0.0
    while not server.started:
        if failed.is_set() or not thread.is_alive() or waited > _START_SECONDS:
            raise UnavailableError(f"cannot listen on {where}; is it in use?")
        thread.join(0.02)
        waited += 0.02
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5.0)
