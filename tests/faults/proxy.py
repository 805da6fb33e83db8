"""A TCP proxy between a client and its broker that can do what networks do: eight toxics, one at a time."""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

LATENCY = 0.15  # seconds, more or less a third of it
BANDWIDTH = 40_000  # bytes a second
LIMIT = 20_000  # bytes until a connection is cut
SLOW_CLOSE = 1.0  # seconds
TIMEOUT = 1.0  # seconds without an answer until the connection is closed
RESET_AFTER = 0.3  # seconds
LARGEST_SLICE = 64  # bytes

TOXICS = ("latency", "down", "bandwidth", "slow close", "timeout", "slicer", "limit data", "reset peer")


class Proxy:
    """Listens on a port of its own, in a thread of its own, and passes on to `upstream`. `toxic`: what it does now, if anything."""

    def __init__(self, upstream: int) -> None:
        self.toxic: str | None = None
        self.connections = 0
        self._upstream = upstream
        self._rng = random.Random(1)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._wait(self._listen())

    def set(self, toxic: str | None) -> None:
        """From now on, for open connections and new ones; going down cuts the open ones."""
        assert toxic is None or toxic in TOXICS, toxic
        was, self.toxic = self.toxic, toxic
        if toxic == "down":
            self._wait(self._shut())
        elif was == "down":
            self._wait(self._listen())
        if toxic == "reset peer":
            self._loop.call_soon_threadsafe(self._loop.call_later, RESET_AFTER, self._cut_all)

    def close(self) -> None:
        self._wait(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, task: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(task, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _shut(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._cut_all()

    def _cut_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            _reset(writer)
            return
        both = {writer, far_writer}
        self._open |= both
        if self.toxic == "reset peer":
            self._loop.call_later(RESET_AFTER, _reset, writer)
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            self._open -= both
            for each in both:
                with suppress(Exception):
                    each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                passed += len(chunk)
                if not await self._send(chunk, writer, passed):
                    break
        if self.toxic == "slow close":
            await asyncio.sleep(SLOW_CLOSE)
        with suppress(Exception):
            writer.close()

    async def _send(self, chunk: bytes, writer: asyncio.StreamWriter, passed: int) -> bool:
        """Whether the connection lives on."""
        match self.toxic:
            case "latency":
                await asyncio.sleep(LATENCY * self._rng.uniform(0.67, 1.33))
            case "bandwidth":
                await asyncio.sleep(len(chunk) / BANDWIDTH)
            case "timeout":
                await asyncio.sleep(TIMEOUT)
                return False
            case "limit data" if passed > LIMIT:
                return False
            case "slicer":
                while len(chunk) > LARGEST_SLICE:
                    size = self._rng.randint(1, LARGEST_SLICE)
                    writer.write(chunk[:size])
                    await writer.drain()
                    await asyncio.sleep(0)
                    chunk = chunk[size:]
        writer.write(chunk)
        await writer.drain()
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closed so that the other side gets a reset, not an end."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
