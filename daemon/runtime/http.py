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
    """The learner's port: see `metrics.host` and `metrics.port`."""
    config = uvicorn.Config(app, log_level="warning", lifespan="off")
    with listen(host, port, section="metrics") as listener, _serving(config, f"{host}:{port}", [listener]):
        yield


def listen(host: str, port: int, *, section: str, backlog: int = 128) -> socket.socket:
    """Listening, at once. `section` of the config says where; ConfigError: nobody knows the host; UnavailableError: try again."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    told = f"cannot listen on {host}:{port}"
    try:
        (_, _, _, _, address), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(address, family=family, backlog=backlog)
    except OSError as error:
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            raise ConfigError(f"{told}: no such host; mend {section}.host: {error.strerror}") from error
        raise UnavailableError(f"{told}: {error.strerror}; see {section}.host and {section}.port") from error


@contextmanager
def _serving(config: uvicorn.Config, where: str, sockets: list[socket.socket]) -> Iterator[None]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,), name=f"http {where}", daemon=True)
    thread.start()
    waited = 0.0
    while not server.started:
        if not thread.is_alive() or waited > _START_SECONDS:
            raise UnavailableError(f"nothing is served on {where}; the log says why")
        thread.join(0.02)
        waited += 0.02
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5.0)
