"""What clients call: the Open Inference Protocol v2, POST /predict, and what load balancers and operators ask.

    POST /predict                                 {"text": ...} or {"texts": [...]}
    POST /v2/models/{name}[/versions/{v}]/infer   see open_inference.py
    POST /feedback                                {"id": ..., "label": ...} or {"labels": [{...}, ...]}
    GET  and what is asked about the server       see openapi.py

Every answer names its version and its request, in the body and in X-Model-Version and X-Request-Id. Errors are {"error": sentence}:
4xx for what the client can mend, 503 with Retry-After for what time will mend.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from threading import Event
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.config import ServerConfig
from daemon.core.errors import NotFoundError, NotReadyError, RelearndError, UnavailableError, UsageError
from daemon.core.types import ModelVersion, Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.batcher import Batcher
from daemon.serve.feedback import Feedback
from daemon.serve.manager import ServingStatus
from daemon.serve.open_inference import (
    EXTENSIONS,
    HEADER_LENGTH,
    binary_data,
    inference_answer,
    model_metadata,
    parse_inference,
    parse_json,
)
from daemon.serve.openapi import DOCUMENT, OPERATIONS, document
from daemon.serve.readiness import Readiness
from daemon.serve.requests import Label, RequestIds, check_labels, check_texts, text_ids
from daemon.serve.router import Handle, Router
from daemon.serve.waiting import ClientGone, Desk, timeout_of

VERSION_HEADER = "X-Model-Version"
ID_HEADER = "X-Request-Id"
TIMEOUT_HEADER = "X-Request-Timeout-Ms"

Handler = Callable[[Request], Awaitable[Response]]
Counts = Callable[[], None]
Observes = Callable[[float], None]

_VERSION_HEADER, _ID_HEADER = VERSION_HEADER.lower().encode(), ID_HEADER.lower().encode()
_VERSION = metadata.version("relearnd")
_SWAPS_SHOWN = 5  # by /status; /swaps shows all that are remembered
_RETRY_AFTER = {"Retry-After": "1"}
_CLOSE = {"Connection": "close"}  # what is left of the body is not read
_VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class _PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    text: str | None = None
    texts: list[str] | None = None
    id: str | None = None


class _FeedbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    id: str | None = None
    label: str | None = None
    labels: list[Label] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers ask, of REST and gRPC. `stuck` names loops that stopped beating; `stopping` is set when the server is to
    leave; `feedback` is None when answers are not logged."""

    model: str
    router: Router
    batcher: Batcher
    status: Callable[[], ServingStatus]
    stuck: Callable[[], Mapping[str, float]]
    metrics: ServerMetrics
    limits: ServerConfig
    stopping: Event
    readiness: Readiness
    ids: RequestIds
    feedback: Feedback | None = None

    async def not_ready_because(self, number: int | None = None) -> str | None:
        """Of one version, or of whichever is champion. Raises NotFoundError for a version that is not loaded."""
        if self.stopping.is_set():
            return "the server is stopping"
        if number is None and (waiting_for := self.status().waiting_for):
            return waiting_for
        try:
            if self.readiness.known(number):
                return self.readiness.failure(number)
            return await asyncio.to_thread(self.readiness.failure, number)
        except NotReadyError as error:
            return str(error)

    def addressed(self, model: str, version: str | None) -> int | None:
        """The version that is named, None for whichever is champion. Raises NotFoundError for a model that is not ours."""
        if model != self.model:
            raise NotFoundError(f"there is no model '{model}' here; this server serves '{self.model}'")
        if version is not None and not _VERSION_NUMBER.fullmatch(version):
            raise NotFoundError(f"a version is a number from 1; got '{version}'")
        return None if version is None else int(version)


def create_app(service: Service) -> ASGIApp:
    """Whoever reaches it may ask: keys are asked for by the Guard before it."""
    api = _Api(service)
    app = Starlette(
        routes=[Route(each.path, getattr(api, each.handler), methods=[each.method]) for each in OPERATIONS],
        exception_handlers=_ERROR_ANSWERS,
    )
    app.router.redirect_slashes = False
    return _Counted(_Direct(api, service.model, app), service.metrics)


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._desk: Desk | None = None
        limits = service.limits
        keys = limits.api_keys_file is not None
        described = document(_VERSION, keys=keys, max_body=limits.max_body, max_texts=limits.max_texts)
        self._document = msgspec.json.encode(described)

    # --- answers ---

    async def predict(self, request: Request) -> Response:
        asked = parse_json(await self._body(request), _PredictRequest)
        if (asked.text is None) == (asked.texts is None):
            raise UsageError('send either {"text": "..."} or {"texts": ["...", ...]}')
        texts = [asked.text] if asked.text is not None else asked.texts or []
        check_texts(texts, most=self._service.limits.max_texts)
        given = asked.id or _header(request, ID_HEADER)
        id = self._service.ids(given)
        version, predictions = await self._answered(request, None, id, texts, key=given or texts[0])
        named = [_named(prediction, version) for prediction in predictions]
        if asked.text is None:
            each = zip(text_ids(id, len(texts)), named, strict=True)
            named = [{"predictions": [{"id": text_id, **answer} for text_id, answer in each]}]
        return _Answer(version, id, {"id": id, "model": self._service.model, "version": version.number, **named[0]})

    async def infer(self, request: Request) -> Response:
        number = self._addressed(request)
        asked = parse_inference(await self._body(request), _header(request, HEADER_LENGTH))
        check_texts(asked.texts, most=self._service.limits.max_texts)
        given = asked.id or _header(request, ID_HEADER)
        id = self._service.ids(given)
        version, predictions = await self._answered(request, number, id, asked.texts, key=given or asked.texts[0])
        answer = {**inference_answer(asked, version, predictions), "id": id}
        if asked.binary:
            return _with_binary(_Answer(version, id, answer), binary_data(asked, predictions))
        return _Answer(version, id, answer)

    async def feedback(self, request: Request) -> Response:
        if self._service.feedback is None:
            raise HTTPException(503, "feedback is not taken here: server.feedback.sink is none", _RETRY_AFTER)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "send Content-Type: application/json")  # so that no page of a third party can
        asked = parse_json(await self._body(request), _FeedbackRequest)
        one = asked.id is not None and asked.label is not None
        if one == (asked.labels is not None) or (asked.id is None) != (asked.label is None):
            raise UsageError(
                'send either {"id": "...", "label": "..."} or {"labels": [{"id": "...", "label": "..."}, ...]}'
            )
        labels = [Label(asked.id or "", asked.label or "")] if one else asked.labels or []
        check_labels(labels, most=self._service.limits.max_texts)
        timeout = self._service.limits.request_timeout.total_seconds()
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._service.feedback.labelled(labels)), timeout)
        except TimeoutError:
            raise HTTPException(503, f"not written within {timeout:g} s; try again", _RETRY_AFTER) from None
        return _json({"taken": len(labels)})

    async def _answered(
        self, request: Request, number: int | None, id: str, texts: Sequence[str], *, key: str
    ) -> tuple[ModelVersion, Sequence[Prediction]]:
        with self._service.router.handle(number, key=key) as handle:
            predictions = await self._predictions(request, handle, texts)
            handle.answered(texts, predictions)
        if self._service.feedback is not None:
            self._service.feedback.predicted(id, handle.version, texts, predictions)
        return handle.version, predictions

    async def _predictions(self, request: Request, handle: Handle, texts: Sequence[str]) -> Sequence[Prediction]:
        """A client that leaves or waits too long gives its place in the queue up."""
        loop = asyncio.get_running_loop()
        if self._desk is None or self._desk.loop is not loop:
            self._desk = Desk(self._service.batcher, loop)
        timeout = timeout_of(_header(request, TIMEOUT_HEADER), self._service.limits.request_timeout.total_seconds())
        try:
            return await self._desk.ask(handle.predictor, texts, timeout=timeout, gone=lambda: _disconnected(request))
        except ClientGone:
            raise ClientDisconnect from None

    # --- what is asked ---

    async def _body(self, request: Request) -> bytes:
        limits = self._service.limits
        if (encoding := _header(request, "content-encoding") or "identity") != "identity":
            raise HTTPException(415, f"the body is encoded as {encoding[:32]}; send it as it is", _CLOSE)
        body, whole = bytearray(), False
        try:
            async with asyncio.timeout(limits.request_timeout.total_seconds()):
                while not whole:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    whole = not message.get("more_body", False)
                    if len(body) > limits.max_body:
                        raise HTTPException(
                            413, f"the body is larger than {limits.max_body} bytes; send fewer texts", _CLOSE
                        )
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {limits.request_timeout}", _CLOSE) from None
        return bytes(body)

    def _addressed(self, request: Request) -> int | None:
        return self._service.addressed(request.path_params["name"], request.path_params.get("version"))

    # --- about the server ---

    async def server_metadata(self, _request: Request) -> Response:
        return _json({"name": "relearnd", "version": _VERSION, "extensions": EXTENSIONS})

    async def openapi(self, _request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    async def metadata(self, request: Request) -> Response:
        number = self._addressed(request)
        router = self._service.router
        if number is None:
            return _json(model_metadata(self._service.model, router.loaded, router.served))
        with router.handle(number, counted=False) as handle:
            return _json(model_metadata(self._service.model, [number], handle.version))

    async def model_ready(self, request: Request) -> Response:
        return await self._readiness({"name": self._service.model}, self._addressed(request))

    async def live(self, _request: Request) -> Response:
        stuck = self._service.stuck()
        return _json({"live": not stuck, "stuck": stuck}, 503 if stuck else 200)

    async def ready(self, _request: Request) -> Response:
        return await self._readiness({})

    async def _readiness(self, about: Mapping[str, Any], number: int | None = None) -> Response:
        reason = await self._service.not_ready_because(number)
        if reason is None:
            degraded = self._service.status().degraded_because if number is None else None
            return _json({**about, "ready": True, **({"degraded": degraded} if degraded else {})})
        return _json({**about, "ready": False, "error": reason}, 503, _RETRY_AFTER)

    async def metrics(self, _request: Request) -> Response:
        metrics = self._service.metrics
        return Response(metrics.render(), headers={"Content-Type": metrics.content_type})

    async def status(self, _request: Request) -> Response:
        reason = await self._service.not_ready_because()
        status = self._service.status()
        status = replace(status, swaps=status.swaps[-_SWAPS_SHOWN:])
        about = {"ready": reason is None, "reason": reason, "degraded": status.degraded_because}
        return _json({**msgspec.to_builtins(status), **about})

    async def swaps(self, _request: Request) -> Response:
        return _json({"model": self._service.model, "swaps": self._service.status().swaps})


class _Direct:
    """What is asked all the time goes straight to its handler, past the framework's routing; everything else to `rest`."""

    def __init__(self, api: _Api, model: str, rest: ASGIApp) -> None:
        self._handlers: Mapping[str, Handler] = {"/predict": api.predict, f"/v2/models/{model}/infer": api.infer}
        self._parameters = {"name": model}
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"]) if scope["method"] == "POST" else None
        if handler is None:
            await self._rest(scope, receive, send)
            return
        scope["endpoint"], scope["path_params"] = handler, self._parameters
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Exception as error:
            answer = next(answer for kind, answer in _ERROR_ANSWERS.items() if isinstance(error, kind))
            await (await answer(request, error))(scope, receive, send)
            if answer is _unexpected:
                raise  # into the server's log
        else:
            await response(scope, receive, send)


class _Counted:
    """Counts and times every request, whatever became of it."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._counters: dict[tuple[str, int, bytes], tuple[Counts, Observes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, code, version = time.perf_counter(), 500, b""

        async def noting(message: Message) -> None:
            nonlocal code, version
            if message["type"] == "http.response.start":
                code = message["status"]
                version = next((value for name, value in message["headers"] if name == _VERSION_HEADER), b"")
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            count, observe = self._counters.get((endpoint, code, version)) or self._counter(endpoint, code, version)
            count()
            observe(time.perf_counter() - started)

    def _counter(self, endpoint: str, code: int, version: bytes) -> "tuple[Counts, Observes]":
        counter = self._metrics.requests.labels(endpoint, str(code), version.decode())
        both = (counter.inc, self._metrics.latency.labels(endpoint).observe)
        self._counters[endpoint, code, version] = both
        return both


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _header(request: Request, name: str) -> str | None:
    """What `request.headers.get` gives, in a third of its time: four are asked for with each request."""
    wanted = name.lower().encode()
    return next((value.decode("latin-1") for key, value in request.scope["headers"] if key == wanted), None)


def _named(prediction: Prediction, version: ModelVersion) -> dict[str, Any]:
    probabilities = dict(zip(version.labels, prediction.probabilities, strict=True))
    named = {"label": prediction.label, "confidence": prediction.confidence, "probabilities": probabilities}
    return {**named, "truncated": True} if prediction.truncated else named


class _Answer(Response):
    """JSON of a version, with less ado than the framework's own constructor makes of its headers."""

    def __init__(self, version: ModelVersion, id: str, answer: Mapping[str, Any]) -> None:
        self.status_code = 200
        self.background = None
        self.body = msgspec.json.encode(answer)
        self.raw_headers = [
            (_VERSION_HEADER, str(version.number).encode()),
            (_ID_HEADER, id.encode()),
            (b"content-length", str(len(self.body)).encode()),
            (b"content-type", b"application/json"),
        ]


def _with_binary(answer: Response, binary: bytes) -> Response:
    """The same with outputs in binary form behind its JSON."""
    headers = {name: answer.headers[name] for name in (VERSION_HEADER, ID_HEADER)}
    headers[HEADER_LENGTH] = str(len(answer.body))
    return Response(bytes(answer.body) + binary, headers=headers, media_type="application/octet-stream")


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _our_error(_request: Request, error: Exception) -> Response:
    match error:
        case UsageError():
            return _json({"error": str(error)}, 400)
        case NotFoundError():
            return _json({"error": str(error)}, 404)
        case UnavailableError():
            return _json({"error": str(error)}, 503, _RETRY_AFTER)
        case _:
            return _json({"error": str(error)}, 500)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            detail = f"there is no such path; GET {DOCUMENT} lists those that there are"
        case 405:
            detail = f"this path is asked with {(error.headers or {}).get('Allow')}"
        case _:
            detail = error.detail
    return _json({"error": detail}, error.status_code, error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _unexpected(_request: Request, _error: Exception) -> Response:
    return _json({"error": "an error of the server's own; its log says more"}, 500)


_ERROR_ANSWERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RelearndError: _our_error,
    HTTPException: _http_error,
    ClientDisconnect: _gone,
    Exception: _unexpected,
}
