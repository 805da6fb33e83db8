"""Where a process listens: an address that cannot be is for the operator to mend, one that is taken may become free."""

import socket
from typing import NoReturn

import pytest
from starlette.applications import Starlette

from daemon.core.errors import ConfigError, UnavailableError
from daemon.runtime.http import listen, served_on_port


def test_a_host_that_nobody_knows_is_a_fault_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: _fails(socket.EAI_NONAME))
    with pytest.raises(ConfigError, match=r"metrics\.host"), served_on_port(Starlette(), "no-such-host", 0):
        pass


def test_a_resolver_that_does_not_answer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: _fails(socket.EAI_AGAIN))
    with pytest.raises(UnavailableError, match=r"server\.host"):
        listen("host", 1, section="server")


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0, section="server") as first:
        port = first.getsockname()[1]
        taken = f"cannot listen on 127.0.0.1:{port}.*metrics.port"
        with pytest.raises(UnavailableError, match=taken), served_on_port(Starlette(), "127.0.0.1", port):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_usual_addresses_are_listened_on(host: str) -> None:
    with listen(host, 0, section="server") as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5).close()


def _fails(code: int) -> NoReturn:
    raise socket.gaierror(code, "as the test asked for")
