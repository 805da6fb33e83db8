"""Golden texts asked of the application behind the data port: its routes, limits, queue and all.

In this process and not by way of the socket, so without TLS and keys: behind one port there may be several processes.
"""

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import msgspec

from daemon.core.artefact import Golden
from daemon.core.errors import ArtefactError, UnavailableError
from daemon.core.types import ModelVersion
from daemon.serve.requests import GOLDEN_ID
from daemon.serve.router import falls_to_canary
from daemon.serve.swap_report import GoldenProof

PATIENCE = 10.0  # seconds for which a full queue is asked again before it is left for later
WHOLE = 60.0  # seconds for all texts together: the manager's thread asks, and does nothing else meanwhile
_HUNG = 30.0  # seconds; the application itself gives requests up long before
_LONGEST = 80  # characters; a longer text would be felt by the requests beside it
_AGAIN = 0.1
ID_HEADER = b"x-request-id"
_OK, _UNAVAILABLE = 200, 503
_ID = next(id for id in map(f"{GOLDEN_ID}{{}}".format, itertools.count()) if not falls_to_canary(id, 0.5)).encode()
"""Falls to the champion, whatever share a canary has."""

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class _Answer(msgspec.Struct):
    version: int
    probabilities: dict[str, float]


class Endpoint:
    """The application, asked from a thread that is not its own. `open` is called on the application's event loop."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self, app: App) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._open.set()

    def predict(self, text: str, timeout: float = _HUNG) -> tuple[int, bytes]:
        """Status and body of POST /predict. Raises UnavailableError."""
        if not self._open.wait(timeout):
            raise UnavailableError("the data port is not open")
        asking = self._post("/predict", msgspec.json.encode({"text": text}))
        try:
            asked = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError as error:  # its event loop is closed
            asking.close()
            raise UnavailableError("the data port is closed") from error
        try:
            return asked.result(timeout)
        except CancelledError as error:  # as whatever still runs at a stop
            raise UnavailableError("the data port was closed meanwhile") from error
        except TimeoutError:
            asked.cancel()
            raise UnavailableError(f"no answer within {timeout:.0f} s") from None

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        arrived: list[Message] = []
        to_come = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return to_come.pop() if to_come else await asyncio.Event().wait() and {}

        async def send(message: Message) -> None:
            arrived.append(message)

        await self._app(_scope(path, body), receive, send)
        return arrived[0]["status"], b"".join(message.get("body", b"") for message in arrived[1:])


def _scope(path: str, body: bytes) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (ID_HEADER, _ID),
        ],
        "client": None,
        "server": None,
        "state": {},
    }


def prove(
    endpoint: Endpoint, version: ModelVersion, golden: Golden, *, monotonic: Callable[[], float] = time.monotonic
) -> GoldenProof:
    """Asks text by text, so that nobody waits behind all of them, and not the long ones: the loader has held all of them against
    the record before. Never raises: what is not answered is not equal, and what there is no room or no time for says nothing."""
    asking = _Asking(endpoint, monotonic)
    largest = 0.0
    asked = _short(golden)
    for place, (text, logits) in enumerate(asked):
        try:
            largest = max(largest, _difference(asking.ask(text), version, logits))
        except UnavailableError as error:
            done = f"{place} of {len(asked)} golden texts were answered: {error}; all are asked again later"
            return GoldenProof(version.golden_sha256, len(asked), None, None, done)
        except Exception as error:  # whatever it is, the answer did not come
            return GoldenProof(version.golden_sha256, len(asked), False, None, str(error) or repr(error))
    equal = largest <= golden.tolerance
    detail = "" if equal else f"probabilities differ by {largest:.3g}, tolerance {golden.tolerance:.3g}"
    return GoldenProof(version.golden_sha256, len(asked), equal, largest, detail)


def _short(golden: Golden) -> Sequence[tuple[str, Sequence[float]]]:
    """With their logits, the shortest first; one at least."""
    pairs = sorted(zip(golden.texts, golden.logits, strict=True), key=lambda pair: len(pair[0]))
    return [pair for place, pair in enumerate(pairs) if place == 0 or len(pair[0]) <= _LONGEST]


class _Asking:
    """Of one text after the other, against two clocks that started together."""

    def __init__(self, endpoint: Endpoint, monotonic: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._monotonic = monotonic
        self._started = monotonic()

    def ask(self, text: str) -> _Answer:
        """Raises ArtefactError for a refusal, UnavailableError when there was no room, or no answer before the time was over."""
        while True:
            status, body = self._endpoint.predict(text, self._left())
            if status == _OK:
                return msgspec.json.decode(body, type=_Answer)
            if status != _UNAVAILABLE:
                raise ArtefactError(f"the endpoint answers {status} to a golden text")
            if self._monotonic() > self._started + PATIENCE:
                raise UnavailableError(f"the endpoint has had no room for the next for {PATIENCE:.0f} s")
            time.sleep(_AGAIN)

    def _left(self) -> float:
        """For one answer."""
        left = self._started + WHOLE - self._monotonic()
        if left <= 0:
            raise UnavailableError(f"the {WHOLE:.0f} s for all of them are over")
        return min(left, _HUNG)


def _difference(answer: _Answer, version: ModelVersion, logits: Sequence[float]) -> float:
    """The largest between the probabilities answered and those of the judge. Raises ArtefactError."""
    if answer.version != version.number:
        raise ArtefactError(f"the endpoint answers with version {answer.version} instead of {version.number}")
    expected = dict(zip(version.labels, _softmax(logits), strict=True))
    if answer.probabilities.keys() != expected.keys():
        raise ArtefactError("the endpoint answers a golden text with other labels than the judge saw")
    return max(abs(answer.probabilities[label] - expected[label]) for label in expected)


def _softmax(logits: Sequence[float]) -> list[float]:
    """Within it differences are no larger than between the logits, so that their tolerance holds here too."""
    most = max(logits)
    powers = [math.exp(logit - most) for logit in logits]
    return [power / sum(powers) for power in powers]
