"""Connections that take their time: uvicorn's HTTP protocol with limits on the head of a request, which it has none of.

A head must arrive within `seconds` and in _LARGEST_HEAD bytes; whatever surrounds a body (chunk sizes, trailers) may be some times
as large as the largest body. A connection over which nothing is asked is closed after `idle` seconds.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LARGEST_HEAD = 64 * 1024  # bytes
_WRAPPING = 8  # times the largest body: a body in chunks of one byte is six times as long
_LOOK_EVERY = 1.0  # seconds

_LATE = b"HTTP/1.1 408 Request Timeout\r\n"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
_CLOSING = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"


class LimitedConnection(HttpToolsProtocol):
    """Made by uvicorn, one a connection. Limits are set on the class that `limited` gives."""

    seconds = 10.0
    idle = 75.0
    largest_body = 2**20  # bytes

    _since: float | None  # when the head that is not complete yet, or the connection, began
    _asked = False  # whether a request has ever begun
    _bytes = 0  # of this request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._since = self.loop.time()
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        self._since = self.loop.time()
        self._asked = True
        self._bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._since = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._bytes += len(data)
        if self._bytes > _LARGEST_HEAD and self._too_large():
            self._refuse(_LARGE, "the head of the request is larger than 65536 bytes; send fewer or shorter headers")

    def look(self, now: float) -> None:
        """Close it when it has taken too long."""
        if self._since is not None and now - self._since > (self.seconds if self._asked else self.idle):
            self._refuse(_LATE, f"the head of the request did not arrive within {self.seconds:g} s")

    def _too_large(self) -> bool:
        return self._since is not None or self._bytes > _LARGEST_HEAD + _WRAPPING * self.largest_body

    def _refuse(self, status: bytes, sentence: str) -> None:
        if not self.transport.is_closing():
            body = b'{"error":"%s"}' % sentence.encode()
            self.transport.write(status + _CLOSING % (len(body), body))
            self.transport.close()


def limited(*, seconds: float, idle: float, largest_body: int) -> type[LimitedConnection]:
    return type(
        "LimitedConnection", (LimitedConnection,), {"seconds": seconds, "idle": idle, "largest_body": largest_body}
    )


async def look_after(connections: set[Any]) -> None:
    """Until cancelled: close those that take too long."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        for connection in list(connections):
            connection.look(loop.time())
