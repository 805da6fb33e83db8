"""Every route of the data port, and the OpenAPI document that describes them. http_api.py makes its routes from this table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.serve.open_inference import HEADER_LENGTH

DOCUMENT = "/openapi.json"

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `handler` names the method that answers; what is not `open` needs a key where keys are set.

    `answers` are the JSON schemas by status code; `request` is the JSON schema of the body. None of them: no JSON.
    """

    method: str
    path: str
    handler: str
    summary: str
    answers: Mapping[int, str | None]
    request: str | None = None
    open: bool = False

    @property
    def id(self) -> str:
        return f"{self.handler}_of_version" if "{version}" in self.path else self.handler + "_v2" * self._has_a_twin

    @property
    def _has_a_twin(self) -> bool:
        return self.path.startswith("/v2/health/")


_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
_ASKED = {400: "Error", 408: "Error", 413: "Error", 415: "Error", 500: "Error", 503: "Error"}

# Open are only those that load balancers ask: they hold no key, and learn no more than whether to send requests here.
OPERATIONS: Sequence[Operation] = (
    Operation("POST", "/predict", "predict", "Labels of one text or several.", {200: "Predicted", **_ASKED}, "Predict"),
    Operation("POST", "/feedback", "feedback", "Labels that became known later, by the ids of answers.",
              {200: "Taken", **_ASKED}, "Feedback"),
    Operation("GET", "/v2", "server_metadata", "Name and version of the server.", {200: "ServerMetadata"}),
    Operation("GET", "/v2/health/live", "live", "As /livez.", {200: "Live", 503: "Live"}, open=True),
    Operation("GET", "/v2/health/ready", "ready", "As /readyz.", {200: "Ready", 503: "Ready"}, open=True),
    Operation("GET", _MODEL, "metadata", "Versions, inputs and outputs.", {200: "ModelMetadata", 404: "Error"}),
    Operation("GET", _VERSION, "metadata", "The same of one version.", {200: "ModelMetadata", 404: "Error"}),
    Operation("GET", f"{_MODEL}/ready", "model_ready", "Whether the champion answers as it was judged.",
              {200: "ModelReady", 404: "Error", 503: "ModelReady"}),
    Operation("GET", f"{_VERSION}/ready", "model_ready", "The same of one version.",
              {200: "ModelReady", 404: "Error", 503: "ModelReady"}),
    Operation("POST", f"{_MODEL}/infer", "infer", "Open Inference Protocol v2: the champion's answer.",
              {200: "InferAnswer", 404: "Error", **_ASKED}, "Infer"),
    Operation("POST", f"{_VERSION}/infer", "infer", "Open Inference Protocol v2: one version's answer.",
              {200: "InferAnswer", 404: "Error", **_ASKED}, "Infer"),
    Operation("GET", "/livez", "live", "Whether its threads beat; else restart it.", {200: "Live", 503: "Live"}, open=True),
    Operation("GET", "/readyz", "ready", "Whether the champion answers its golden texts as it was judged, through the queue.",
              {200: "Ready", 503: "Ready"}, open=True),
    Operation("GET", "/metrics", "metrics", "Metrics for Prometheus.", {200: None}),
    Operation("GET", "/status", "status", "Versions loaded and swaps, for operators.", {200: "Status"}),
    Operation("GET", "/swaps", "swaps", "Reports of the last 100 swaps, the newest last.", {200: "Swaps"}),
    Operation("GET", DOCUMENT, "openapi", "This document.", {200: "Document"}),
)  # fmt: skip

OPEN_PATHS = frozenset(operation.path for operation in OPERATIONS if operation.open)


def document(version: str, *, keys: bool, max_body: int, max_texts: int) -> dict[str, Any]:
    """OpenAPI 3.1. `keys`: whether API keys are asked for."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, keys)
    schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "relearnd",
            "version": version,
            "description": f"At most {max_body} bytes a body and {max_texts} texts a request. A text is read as far as its version "
            "reads (task.max_tokens of the learner); what is behind that does not count, and the answer says `truncated`.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(max_texts), **schemes},
    }


def _described(operation: Operation, keys: bool) -> dict[str, Any]:
    guarded = keys and not operation.open
    answers = {**operation.answers, **({401: "Error"} if guarded else {})}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [_path_parameter(name) for name in ("name", "version") if f"{{{name}}}" in operation.path],
        "responses": {str(code): _response(code, schema, operation) for code, schema in sorted(answers.items())},
    }
    if operation.request:
        described["requestBody"] = {"required": True, "content": _bodies(operation)}
    if operation.request == "Infer":
        described["parameters"].append(_HEADER_LENGTH_PARAMETER)
    if operation.request in ("Predict", "Infer"):
        described["parameters"] += [_ID_PARAMETER, _TIMEOUT_PARAMETER]
    if guarded:
        described["security"] = [{"key": []}]
    return described


def _bodies(operation: Operation) -> dict[str, Any]:
    json = {"application/json": {"schema": _ref(operation.request or "")}}
    return {**json, **_BINARY} if operation.request == "Infer" else json


def _response(code: int, schema: str | None, operation: Operation) -> dict[str, Any]:
    body: dict[str, Any] = {"application/json": {"schema": _ref(schema)}} if schema else {"text/plain": {}}
    headers = {}
    if code == 200 and operation.request in ("Predict", "Infer"):
        body |= _BINARY if operation.request == "Infer" else {}
        headers = {"X-Model-Version": _header("Number of the version that answered."),
                   "X-Request-Id": _header("Id of the request, for feedback.")}  # fmt: skip
    if code == 503 and schema != "Live":
        headers = {"Retry-After": _header("Seconds.")}
    return {"description": _MEANING[code], "headers": headers, "content": body}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _header(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "schema": {"type": "string"}}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


_BINARY: Schema = {"application/octet-stream": {}}
_HEADER_LENGTH_PARAMETER = {
    "name": HEADER_LENGTH,
    "in": "header",
    "description": "Bytes of JSON at the start of the body, where binary tensor data follow it.",
    "schema": {"type": "integer", "minimum": 0},
}
_ID_PARAMETER = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Id of the request, where its body has none.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
}
_TIMEOUT_PARAMETER = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds after which the answer is of no use; it is given up then.",
    "schema": {"type": "integer", "minimum": 1},
}
_MEANING = {
    200: "The answer.",
    400: "The request cannot be answered; the error says what to send instead.",
    401: "No valid key.",
    404: "No such model, or the version is not loaded here.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is of a kind or an encoding that is not read here.",
    500: "A fault of the server's own.",
    503: "Not now; try again.",
}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None, *, closed: bool = True) -> Schema:
    shape = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {**shape, "additionalProperties": False} if closed else shape


def _array(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_NUMBER = {"type": "number"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_YES_NO = {"type": "boolean"}
_ID = {"type": "string", "pattern": "^[!-~]{1,128}$"}
_ANSWER = {"id": _TEXT, "label": _TEXT, "confidence": _SHARE,
           "probabilities": {"type": "object", "additionalProperties": _SHARE}}  # fmt: skip
_TRUNCATED = {"truncated": {"const": True, "description": "The text is longer than its version reads."}}
_LABEL = _object({"id": _ID, "label": _TEXT})
_TENSOR_METADATA = _object({"name": _TEXT, "datatype": _TEXT, "shape": _array(_WHOLE)})
_PARAMETERS = {"type": "object"}
_INPUT = _object(
    {"name": {"const": "text"}, "datatype": {"const": "BYTES"}, "shape": _array(_WHOLE, minItems=1, maxItems=2)},
    {"data": {"type": "array"}, "parameters": _PARAMETERS},
    closed=False,
)
_OUTPUT = _object(
    {"name": _TEXT, "datatype": {"enum": ["BYTES", "FP32"]}, "shape": _array(_WHOLE)},
    {"data": _array({"type": ["string", "number"]}), "parameters": _PARAMETERS},
)


def _schemas(max_texts: int) -> dict[str, Schema]:
    texts = _array(_TEXT, minItems=1, maxItems=max_texts)
    by_name = {"model": _TEXT, "version": _WHOLE}
    return {
        "Error": _object({"error": _TEXT}),
        "Predict": {"oneOf": [_object({"text": _TEXT}, {"id": _ID}), _object({"texts": texts}, {"id": _ID})]},
        "Predicted": {
            "oneOf": [
                _object({**by_name, **_ANSWER}, _TRUNCATED),
                _object({**by_name, "id": _TEXT, "predictions": _array(_object(_ANSWER, _TRUNCATED))}),
            ]
        },
        "Feedback": {"oneOf": [_LABEL, _object({"labels": _array(_LABEL, minItems=1, maxItems=max_texts)})]},
        "Taken": _object({"taken": _WHOLE}),
        "Infer": _object(
            {"inputs": _array(_INPUT, minItems=1, maxItems=1)},
            {"id": _ID, "parameters": _PARAMETERS, "outputs": _array(_object({"name": _TEXT}, {"parameters": _PARAMETERS}))},
            closed=False,
        ),
        "InferAnswer": _object(
            {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _array(_OUTPUT)},
            {"parameters": _object({}, _TRUNCATED)},
        ),
        "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}),
        "ModelMetadata": _object(
            {"name": _TEXT, "versions": _array(_TEXT), "platform": _TEXT, "inputs": _array(_TENSOR_METADATA),
             "outputs": _array(_TENSOR_METADATA)}
        ),
        "Live": _object({"live": _YES_NO, "stuck": {"type": "object", "additionalProperties": _NUMBER}}),
        "Ready": _object({"ready": _YES_NO}, {"error": _TEXT, "degraded": _TEXT}),
        "ModelReady": _object({"name": _TEXT, "ready": _YES_NO}, {"error": _TEXT, "degraded": _TEXT}),
        "Status": _object({"model": _TEXT, "ready": _YES_NO, "versions": _array({"type": "object"})}, closed=False),
        "Swaps": _object({"model": _TEXT, "swaps": _array({"type": "object"})}),
        "Document": _object({"openapi": _TEXT, "paths": {"type": "object"}}, closed=False),
    }  # fmt: skip
