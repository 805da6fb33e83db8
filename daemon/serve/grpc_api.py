"""The Open Inference Protocol v2 over gRPC: inference.GRPCInferenceService on a port of its own. The one home of grpcio.

Errors are status codes with a sentence: INVALID_ARGUMENT, NOT_FOUND and UNAUTHENTICATED for what the client can mend, UNAVAILABLE
and RESOURCE_EXHAUSTED, with grpc-retry-pushback-ms, for what time will. The trailing metadata x-request-id and x-model-version say
the same as REST's headers. Messages are parsed here and not by grpcio, so that bytes that are none are the client's error.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib import metadata
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError

from daemon.core.errors import (
    ExpiredError,
    NotFoundError,
    OverloadedError,
    RelearndError,
    UnavailableError,
    UsageError,
)
from daemon.core.types import Prediction
from daemon.serve.auth import ApiKeys, Certificates, Identity
from daemon.serve.http_api import Service
from daemon.serve.oip import open_inference_pb2 as pb
from daemon.serve.open_inference import (
    EXTENSIONS,
    INPUT,
    TRUNCATED,
    Inference,
    Tensor,
    asked_outputs,
    check_tensor,
    model_metadata,
    tensors,
    truncated,
    unpack_texts,
    utf8,
)
from daemon.serve.requests import check_texts
from daemon.serve.router import Predictor
from daemon.serve.waiting import Desk

log = structlog.get_logger(__name__)

M = TypeVar("M", bound="_Message")

_PREFIX = "/inference.GRPCInferenceService/"
OPEN = frozenset({"ServerLive", "ServerReady"})
"""Calls that need no key: what load balancers ask, and answer nothing but yes or no."""

_RETRY = (("grpc-retry-pushback-ms", "1000"),)
_FRAMING = 64 * 1024  # bytes of a message beside its texts
_HEALTH_RPCS = 64  # beside those that wait for inference
_HEADERS = 16 * 1024  # bytes of metadata


class _Message(Protocol):
    @classmethod
    def FromString(cls: type[M], data: bytes) -> M: ...


Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Call: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"


class GrpcServer:
    """`run` is the body of its thread; `port` is done when it listens, or UnavailableError. `stop` from any thread."""

    def __init__(self, service: Service, keys: ApiKeys | None, certificates: Certificates | None) -> None:
        self._service = service
        self._keys = keys
        self._credentials = _credentials(certificates) if certificates else None
        self.port: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    def stop(self) -> None:
        """Take no more calls; those in flight are finished, within drain_limit."""
        self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self) -> None:
        limits = self._service.limits
        options = [
            ("grpc.max_receive_message_length", limits.max_body + _FRAMING),
            ("grpc.max_metadata_size", _HEADERS),
            ("grpc.so_reuseport", 0),  # else two servers would share a port without knowing
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.max_queue + _HEALTH_RPCS)
        server.add_generic_rpc_handlers([_Methods(_Calls(self._service), self._keys, self._service)])
        try:
            self.port.set_result(await self._listen(server, limits.host, limits.grpc_port or 0))
        except UnavailableError as error:
            self.port.set_exception(error)
            return
        await self._stopping.wait()
        await server.stop(limits.drain_limit.total_seconds())

    async def _listen(self, server: Any, host: str, port: int) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = (
                server.add_secure_port(address, self._credentials)
                if self._credentials
                else server.add_insecure_port(address)
            )
            await server.start()
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {address}: {error}; see server.host and server.grpc_port"
            ) from error
        return bound


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Asked for before each handshake; None says that nothing has changed."""
    shown = certificates.now()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        if (newest := certificates.now()) is shown:
            return None
        shown = newest
        return _configuration(newest)

    return grpc.dynamic_ssl_server_credentials(_configuration(shown), changed, shown.client_ca is not None)  # type: ignore[arg-type]


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.cert)], identity.client_ca)


class _Methods(grpc.GenericRpcHandler):
    """Which call is meant, and whether it may be made. What is not open needs a key, whether it exists or not."""

    def __init__(self, calls: "_Calls", keys: ApiKeys | None, service: Service) -> None:
        self._keys = keys
        self._metrics = service.metrics
        self._handlers = {
            f"{_PREFIX}{name}": self._handler(name, kind, call) for name, (kind, call) in calls.by_name().items()
        }
        self._refused = self._handler("none", None, _unauthenticated)
        self._open = {_PREFIX + name for name in OPEN}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        method = handler_call_details.method
        if self._keys is not None and method not in self._open:
            sent = next(
                (value for key, value in handler_call_details.invocation_metadata if key == "authorization"), ""
            )
            if not self._keys.knows(sent.encode() if isinstance(sent, str) else sent):
                return self._refused
        return self._handlers.get(method)

    def _handler(self, name: str, kind: type[_Message] | None, call: Call) -> Handler:
        async def answer(request: bytes, context: Context) -> Any:
            started = time.perf_counter()
            try:
                return await _answered(kind, call, request, context)
            finally:
                code = context.code() or grpc.StatusCode.OK
                code_name = code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK.name
                version = dict(context.trailing_metadata() or ()).get("x-model-version", "")
                self._metrics.requests.labels(f"grpc {name}", code_name, version).inc()
                self._metrics.latency.labels(f"grpc {name}").observe(time.perf_counter() - started)

        return grpc.unary_unary_rpc_method_handler(answer, None, lambda message: message.SerializeToString())


async def _unauthenticated(_request: Any, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "send a valid key as metadata authorization: Bearer KEY")


async def _answered(kind: type[_Message] | None, call: Call, request: bytes, context: Context) -> Any:
    """The answer, or an abort that says why there is none."""
    retry: Any = ()
    try:
        return await call(kind.FromString(request) if kind else None, context)
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except DecodeError:
        code, sentence = grpc.StatusCode.INVALID_ARGUMENT, "these bytes are no message of this call"
    except RelearndError as error:
        code, retry, sentence = *_status(error), str(error)
    except Exception:
        log.exception("a gRPC call failed", action="grpc_failed")
        code, sentence = grpc.StatusCode.INTERNAL, "an error of the server's own; its log says more"
    return await context.abort(code, sentence, retry)


def _status(error: RelearndError) -> tuple[grpc.StatusCode, Any]:
    match error:
        case UsageError():
            return grpc.StatusCode.INVALID_ARGUMENT, ()
        case NotFoundError():
            return grpc.StatusCode.NOT_FOUND, ()
        case OverloadedError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, _RETRY
        case UnavailableError():
            return grpc.StatusCode.UNAVAILABLE, _RETRY
        case _:
            return grpc.StatusCode.INTERNAL, ()


class _Calls:
    """One method a call, named like it in snake case."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._desk: Desk | None = None

    def by_name(self) -> Mapping[str, tuple[type[Any], Call]]:
        return {
            "ServerLive": (pb.ServerLiveRequest, self.server_live),
            "ServerReady": (pb.ServerReadyRequest, self.server_ready),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self.model_metadata),
            "ModelInfer": (pb.ModelInferRequest, self.model_infer),
        }

    async def server_live(self, _request: pb.ServerLiveRequest, _context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=not self._service.stuck())

    async def server_ready(self, _request: pb.ServerReadyRequest, _context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await self._service.not_ready_because() is None)

    async def model_ready(self, request: pb.ModelReadyRequest, _context: Context) -> pb.ModelReadyResponse:
        number = self._service.addressed(request.name, request.version or None)
        return pb.ModelReadyResponse(ready=await self._service.not_ready_because(number) is None)

    async def server_metadata(self, _request: pb.ServerMetadataRequest, _context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="relearnd", version=metadata.version("relearnd"), extensions=list(EXTENSIONS)
        )

    async def model_metadata(self, request: pb.ModelMetadataRequest, _context: Context) -> pb.ModelMetadataResponse:
        number = self._service.addressed(request.name, request.version or None)
        router = self._service.router
        if number is None:
            return pb.ModelMetadataResponse(**model_metadata(self._service.model, router.loaded, router.served))
        with router.handle(number, counted=False) as handle:
            return pb.ModelMetadataResponse(**model_metadata(self._service.model, [number], handle.version))

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        number = self._service.addressed(request.model_name, request.model_version or None)
        asked = parse_infer(request)
        check_texts(asked.texts, most=self._service.limits.max_texts)
        key = asked.id or asked.texts[0]  # a new id would send the same text now to the canary, now not
        asked = replace(asked, id=self._service.ids(asked.id))
        with self._service.router.handle(number, key=key) as handle:
            predictions = await self._predictions(context, handle.predictor, asked.texts)
            handle.answered(asked.texts, predictions)
        if self._service.feedback is not None:
            self._service.feedback.predicted(asked.id or "", handle.version, asked.texts, predictions)
        context.set_trailing_metadata(
            (("x-request-id", asked.id or ""), ("x-model-version", str(handle.version.number)))
        )
        return infer_answer(asked, handle.version.model, handle.version.number, predictions)

    async def _predictions(self, context: Context, predictor: Predictor, texts: Sequence[str]) -> Sequence[Prediction]:
        """Wait for the batcher; a client that leaves or whose deadline passes gives its place in the queue up."""
        patience = self._service.limits.request_timeout.total_seconds()
        left = context.time_remaining()
        desk = self._desk = self._desk or Desk(self._service.batcher, asyncio.get_running_loop())
        try:
            timeout = patience if left is None else min(patience, left)
            return await desk.ask(predictor, texts, timeout=timeout, gone=_never)
        except ExpiredError as error:
            if left is not None and left <= patience:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
            raise


async def _never() -> None:
    """A call whose client leaves is cancelled; nobody needs to look."""
    await asyncio.Event().wait()


# --- messages ---


def parse_infer(request: pb.ModelInferRequest) -> Inference:
    """Outputs come back as the input came: in raw_output_contents or in contents. Raises UsageError."""
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        raise UsageError(f"send exactly one input, named '{INPUT}'; got {[tensor.name for tensor in request.inputs]}")
    [tensor] = request.inputs
    raw = list(request.raw_input_contents)
    if len(raw) > 1 or (raw and tensor.HasField("contents")):
        raise UsageError("send the input either in its contents or as the only item of raw_input_contents")
    if any("classification" in output.parameters for output in request.outputs):
        raise UsageError("the classification extension is not there; ask for 'label', 'confidence' and 'probabilities'")
    elements = tensor.contents.bytes_contents
    texts = unpack_texts(raw[0]) if raw else [utf8(element, index) for index, element in enumerate(elements)]
    check_tensor(tensor.datatype, list(tensor.shape), len(texts))
    outputs = asked_outputs([output.name for output in request.outputs])
    return Inference(texts, outputs, request.id or None, frozenset(outputs if raw else ()))


def infer_answer(asked: Inference, model: str, number: int, predictions: Sequence[Prediction]) -> pb.ModelInferResponse:
    answer = pb.ModelInferResponse(model_name=model, model_version=str(number), id=asked.id or "")
    if truncated(predictions):
        answer.parameters[TRUNCATED].bool_param = True
    for tensor in tensors(asked.outputs, predictions):
        output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if tensor.name in asked.binary:
            answer.raw_output_contents.append(tensor.packed())
        else:
            _fill(output.contents, tensor)
    return answer


def _fill(contents: pb.InferTensorContents, tensor: Tensor) -> None:
    if tensor.datatype == "FP32":
        contents.fp32_contents.extend(tensor.data)
    else:
        contents.bytes_contents.extend(element.encode() for element in tensor.data)
