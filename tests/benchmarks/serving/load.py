"""Clients on kept connections, in one process on raw sockets, so that the load is not what limits: it says how much CPU it took.

    python load.py HOST:PORT FORM CONNECTIONS SECONDS RATE

FORM: the body is {"text": "..."} or {"texts": ["..."]}.

RATE 0: each connection asks as soon as it has its answer. Else so many requests a second, at even distances whatever the answers
do; the time to an answer then counts from when it was due. Prints JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from pathlib import Path

import uvloop

PATIENCE = 60.0


class Load:
    def __init__(self, requests: list[bytes], rate: float) -> None:
        self._requests = requests
        self._rate = rate
        self._asked = 0
        self.idle: deque[Client] = deque()
        self.due: deque[float] = deque()  # when requests were due that no connection was free for
        self.seconds: list[float] = []
        self.failed = 0
        self.stopping = False

    def request(self) -> bytes:
        self._asked += 1
        return self._requests[self._asked % len(self._requests)]

    def free(self, client: "Client") -> None:
        if self.stopping:
            return
        if not self._rate:
            client.ask(time.perf_counter())
        elif self.due:
            client.ask(self.due.popleft())
        else:
            self.idle.append(client)

    async def keep_the_rate(self) -> None:
        due = time.perf_counter()
        while not self.stopping:
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if self.idle:
                self.idle.popleft().ask(due)
            else:
                self.due.append(due)


class Client(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._answer = b""
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._load.free(self)

    def ask(self, since: float) -> None:
        self._since = since
        self._transport.write(self._load.request())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or not _whole(head.lower(), body):
            return
        self._load.failed += not head.startswith(b"HTTP/1.1 200")
        self._answer = b""
        self._load.seconds.append(time.perf_counter() - self._since)
        self._load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.failed += not self._load.stopping


def _whole(head: bytes, body: bytes) -> bool:
    """Whether the body is there to its end. An answer in chunks ends with an empty one."""
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    lengths = (line.partition(b":")[2] for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(next(lengths))


def request(host: str, form: str, text: str) -> bytes:
    body = json.dumps({"text": text} if form == "text" else {"texts": [text]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def main(address: str, form: str, connections: int, seconds: float, rate: float) -> None:
    texts = json.loads(Path(os.environ["BENCH_PLAN"]).read_text())["texts"]
    load = Load([request(address, form, text) for text in texts], rate)
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Client(load), host, int(port))
    pacing = asyncio.ensure_future(load.keep_the_rate()) if rate else None
    await asyncio.sleep(seconds / 4)  # not counted
    load.seconds.clear()
    print(json.dumps({"started": True}), flush=True)
    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    passed, cpu = time.perf_counter() - started, time.process_time() - cpu
    answered = sorted(load.seconds)
    load.stopping = True
    if pacing:
        pacing.cancel()
    share = {f"p{each}_ms": 1000 * answered[min(len(answered) - 1, len(answered) * each // 100)] for each in (50, 99)}
    print(
        json.dumps(
            {
                "rps": len(answered) / passed,
                **share,
                "failed": load.failed,
                "load_cores": cpu / passed,
                "answers": len(answered),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])))
