"""What clients call: the Open Inference Protocol v2, POST /predict, and what load balancers and operators ask.

    POST /predict                                 {"text": ...} or {"texts": [...]}
    POST /v2/models/{name}[/versions/{v}]/infer   see open_inference.py
    GET  /v2  /v2/health/live  /v2/health/ready  /v2/models/{name}[/versions/{v}][/ready]
    GET  /livez  /readyz  /metrics  /status

Every answer names its version, in the body and in X-Model-Version. Errors are {"error": sentence}: 4xx for what the client can
mend, 503 with Retry-After for what time will mend.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from threading import Event
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.config import ServerConfig
from daemon.core.errors import NotFoundError, RelearndError, UnavailableError, UsageError
from daemon.core.types import ModelVersion, Prediction
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.batcher import Batcher
from daemon.serve.manager import ServingStatus
from daemon.serve.open_inference import inference_answer, model_metadata, parse_inference, parse_json
from daemon.serve.router import Handle, Router

VERSION_HEADER = "X-Model-Version"

_RETRY_AFTER = {"Retry-After": "1"}
_CLOSE = {"Connection": "close"}  # what is left of the body is not read
_VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class _PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    text: str | None = None
    texts: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers ask. `stuck` names loops that stopped beating; `stopping` is set when the server is to leave."""

    model: str
    router: Router
    batcher: Batcher
    status: Callable[[], ServingStatus]
    stuck: Callable[[], Mapping[str, float]]
    metrics: ServerMetrics
    limits: ServerConfig
    stopping: Event

    def not_ready_because(self) -> str | None:
        return "the server is stopping" if self.stopping.is_set() else self.status().waiting_for


def create_app(service: Service) -> Starlette:
    api = _Api(service)
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    app = Starlette(
        routes=[
            Route("/predict", api.predict, methods=["POST"]),
            Route("/v2", api.server_metadata),
            Route("/v2/health/live", api.live),
            Route("/v2/health/ready", api.ready),
            *(Route(path, api.metadata) for path in (model, version)),
            *(Route(f"{path}/ready", api.model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", api.infer, methods=["POST"]) for path in (model, version)),
            Route("/livez", api.live),
            Route("/readyz", api.ready),
            Route("/metrics", api.metrics),
            Route("/status", api.status),
        ],
        middleware=[Middleware(_Counted, metrics=service.metrics)],
        exception_handlers={
            RelearndError: _our_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service

    # --- answers ---

    async def predict(self, request: Request) -> Response:
        asked = parse_json(await self._body(request), _PredictRequest)
        if (asked.text is None) == (asked.texts is None):
            raise UsageError('send either {"text": "..."} or {"texts": ["...", ...]}')
        texts = [asked.text] if asked.text is not None else asked.texts or []
        self._check(texts)
        with self._service.router.handle() as handle:
            predictions = await self._predictions(request, handle, texts)
            named = [_named(prediction, handle.version) for prediction in predictions]
        answer = named[0] if asked.text is not None else {"predictions": named}
        return _versioned(handle.version, {"model": self._service.model, "version": handle.version.number, **answer})

    async def infer(self, request: Request) -> Response:
        number = self._addressed(request)
        asked = parse_inference(await self._body(request))
        self._check(asked.texts)
        with self._service.router.handle(number) as handle:
            predictions = await self._predictions(request, handle, asked.texts)
        return _versioned(handle.version, inference_answer(asked, handle.version, predictions))

    async def _predictions(self, request: Request, handle: Handle, texts: Sequence[str]) -> Sequence[Prediction]:
        """Wait for the batcher; a client that leaves or waits too long gives its place in the queue up."""
        answer = asyncio.wrap_future(self._service.batcher.submit(handle.predictor, texts))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            timeout = self._service.limits.request_timeout.total_seconds()
            either: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise HTTPException(503, f"no answer within {timeout:g} s; try again", _RETRY_AFTER)
        finally:
            answer.cancel()
            gone.cancel()

    # --- what is asked ---

    async def _body(self, request: Request) -> bytes:
        limits = self._service.limits
        body = bytearray()
        try:
            async with asyncio.timeout(limits.request_timeout.total_seconds()):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.max_body:
                        raise HTTPException(
                            413, f"the body is larger than {limits.max_body} bytes; send fewer texts", _CLOSE
                        )
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {limits.request_timeout}", _CLOSE) from None
        return bytes(body)

    def _check(self, texts: Sequence[str]) -> None:
        if not texts:
            raise UsageError("there is no text; send at least one")
        if len(texts) > self._service.limits.max_texts:
            raise UsageError(f"{len(texts)} texts in one request; send at most {self._service.limits.max_texts}")
        for index, text in enumerate(texts):
            if not text.strip():
                raise UsageError(f"text {index} is empty; leave it out")

    def _addressed(self, request: Request) -> int | None:
        """The version in the path, None for whichever is champion. Raises NotFoundError for a model that is not ours."""
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self._service.model:
            raise NotFoundError(f"there is no model '{name}' here; this server serves '{self._service.model}'")
        if version is not None and not _VERSION_NUMBER.fullmatch(version):
            raise NotFoundError(f"a version is a number from 1; got '{version}'")
        return None if version is None else int(version)

    # --- about the server ---

    async def server_metadata(self, _request: Request) -> Response:
        return _json({"name": "relearnd", "version": metadata.version("relearnd"), "extensions": []})

    async def metadata(self, request: Request) -> Response:
        number = self._addressed(request)
        router = self._service.router
        if number is None:
            return _json(model_metadata(self._service.model, router.loaded, router.served))
        with router.handle(number) as handle:
            return _json(model_metadata(self._service.model, [number], handle.version))

    async def model_ready(self, request: Request) -> Response:
        number = self._addressed(request)
        if number is None:
            return self._readiness({"name": self._service.model})
        with self._service.router.handle(number):
            return self._readiness({"name": self._service.model})

    async def live(self, _request: Request) -> Response:
        stuck = self._service.stuck()
        return _json({"live": not stuck, "stuck": stuck}, 503 if stuck else 200)

    async def ready(self, _request: Request) -> Response:
        return self._readiness({})

    def _readiness(self, about: Mapping[str, Any]) -> Response:
        reason = self._service.not_ready_because()
        if reason is None:
            return _json({**about, "ready": True})
        return _json({**about, "ready": False, "error": reason}, 503, _RETRY_AFTER)

    async def metrics(self, _request: Request) -> Response:
        metrics = self._service.metrics
        return Response(metrics.render(), headers={"Content-Type": metrics.content_type})

    async def status(self, _request: Request) -> Response:
        reason = self._service.not_ready_because()
        return _json({**msgspec.to_builtins(self._service.status()), "ready": reason is None, "reason": reason})


class _Counted:
    """Counts and times every request, whatever became of it."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, code, version = time.perf_counter(), "500", ""

        async def noting(message: Message) -> None:
            nonlocal code, version
            if message["type"] == "http.response.start":
                code = str(message["status"])
                headers = dict(message["headers"])
                version = headers.get(VERSION_HEADER.lower().encode(), b"").decode()
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            self._metrics.requests.labels(endpoint, code, version).inc()
            self._metrics.latency.labels(endpoint).observe(time.perf_counter() - started)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _named(prediction: Prediction, version: ModelVersion) -> dict[str, Any]:
    probabilities = dict(zip(version.labels, prediction.probabilities, strict=True))
    return {"label": prediction.label, "confidence": prediction.confidence, "probabilities": probabilities}


def _versioned(version: ModelVersion, answer: Mapping[str, Any]) -> Response:
    return _json(answer, headers={VERSION_HEADER: str(version.number)})


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
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _unexpected(_request: Request, _error: Exception) -> Response:
    return _json({"error": "an error of the server's own; its log says more"}, 500)
