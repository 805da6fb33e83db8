"""KServe's Open Inference Protocol v2: requests to texts, predictions to tensors. Pure; REST and gRPC both stand on it.

One input, `text` (BYTES, [N] or [N, 1]); three outputs, `label` (BYTES, [N]), `confidence` (FP32, [N]) and
`probabilities` (FP32, [N, K], K in the order of the version's labels). In binary form a BYTES tensor is each element's length
(4 bytes, little-endian) and its bytes, an FP32 tensor 4 bytes a number; REST puts them behind the JSON (the binary tensor data
extension), gRPC into raw_input_contents and raw_output_contents.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from daemon.core.errors import UsageError
from daemon.core.types import ModelVersion, Prediction

T = TypeVar("T")

PLATFORM = "onnx_onnxv1"
INPUT = "text"
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary data
EXTENSIONS = ("binary_tensor_data",)
TRUNCATED = "truncated"  # a parameter of answers


class _Parameters(msgspec.Struct):
    """Those that mean something here. Others are the client's own affair."""

    binary_data: bool | None = None
    binary_data_output: bool | None = None
    binary_data_size: int | None = None
    classification: int | None = None


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: _Parameters | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """What a client asked for. `outputs` in the order asked, those in `binary` as bytes; `id` is echoed."""

    texts: Sequence[str]
    outputs: Sequence[str]
    id: str | None = None
    binary: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output: `data` is flat, of strings (BYTES) or numbers (FP32)."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Sequence[Any]

    def packed(self) -> bytes:
        if self.datatype == "FP32":
            return struct.pack(f"<{len(self.data)}f", *self.data)
        elements = [element.encode() for element in self.data]
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)


# --- requests ---

_HALF_A_CHARACTER = re.compile(rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w")
"""What msgspec calls truncated input: an escape of the first or the second half of a surrogate pair, alone."""


def parse_json(body: bytes, kind: type[T]) -> T:
    """Raises UsageError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise UsageError("the body is not JSON that can be read: it is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        half = _HALF_A_CHARACTER.search(body)
        reason = f"{half[0].decode('ascii', 'replace')} is half a character; send both halves" if half else error
        raise UsageError(f"the body is not the JSON that is expected here: {reason}") from error


def parse_inference(body: bytes, header_length: str | None = None) -> Inference:
    """`header_length` is what the client sent as HEADER_LENGTH. Raises UsageError that says what to send instead."""
    json, binary = _split(body, header_length)
    request = parse_json(json, _Request)
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        raise UsageError(f"send exactly one input, named '{INPUT}'; got {[tensor.name for tensor in request.inputs]}")
    [tensor] = request.inputs
    texts = _json_texts(tensor) if tensor.data is not None else _binary_texts(tensor, binary)
    check_tensor(tensor.datatype, tensor.shape, len(texts))
    outputs = asked_outputs([output.name for output in request.outputs or []])
    return Inference(texts, outputs, request.id or None, _binary_outputs(request, outputs))


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise UsageError(
            f"{HEADER_LENGTH} is the number of bytes of JSON before the binary data; got '{header_length}'"
        )
    length = int(header_length)
    if length > len(body):
        raise UsageError(f"{HEADER_LENGTH} says {length} bytes of JSON, but the body has {len(body)} in all")
    return body[:length], body[length:]


def _json_texts(tensor: _Input) -> list[str]:
    rows = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in tensor.data or []]
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) != len(rows):
        raise UsageError(f"the data of input '{INPUT}' must be strings, [N] or [N, 1]")
    return texts


def _binary_texts(tensor: _Input, binary: bytes) -> list[str]:
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if size is None:
        raise UsageError(
            f"input '{INPUT}' has no data; send JSON strings, or binary data with {HEADER_LENGTH} and binary_data_size"
        )
    if size != len(binary):
        raise UsageError(f"binary_data_size of input '{INPUT}' is {size}, but {len(binary)} bytes follow the JSON")
    return unpack_texts(binary)


def unpack_texts(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor in binary form. Raises UsageError."""
    texts: list[str] = []
    start = 0
    while start < len(raw):
        end = start + 4
        if end <= len(raw):
            end += int.from_bytes(raw[start:end], "little")
        if end > len(raw):
            raise UsageError(f"the binary data of input '{INPUT}' ends inside element {len(texts)}")
        texts.append(utf8(raw[start + 4 : end], len(texts)))
        start = end
    return texts


def utf8(element: bytes, index: int) -> str:
    """Raises UsageError."""
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise UsageError(f"text {index} is not UTF-8") from None


def check_tensor(datatype: str, shape: Sequence[int], texts: int) -> None:
    """Raises UsageError unless it is how `texts` texts are announced."""
    if datatype != "BYTES":
        raise UsageError(f"input '{INPUT}' is of datatype BYTES; got '{datatype}'")
    if list(shape) not in ([texts], [texts, 1]):
        raise UsageError(f"input '{INPUT}' has shape {list(shape)}, but {texts} texts")


def asked_outputs(names: Sequence[str]) -> Sequence[str]:
    """All of them when none is named. Raises UsageError."""
    unknown = sorted(set(names) - _OUTPUTS.keys())
    if unknown:
        raise UsageError(f"unknown outputs {unknown}; there are {list(_OUTPUTS)}")
    if len(set(names)) != len(names):
        raise UsageError(f"name each output once; got {list(names)}")
    return names or list(_OUTPUTS)


def _binary_outputs(request: _Request, outputs: Sequence[str]) -> frozenset[str]:
    every = request.parameters is not None and request.parameters.binary_data_output is True
    own = {output.name: output.parameters for output in request.outputs or [] if output.parameters}
    if any(parameters.classification for parameters in own.values()):
        raise UsageError("the classification extension is not there; ask for 'label', 'confidence' and 'probabilities'")
    wishes = {name: parameters.binary_data for name, parameters in own.items() if parameters.binary_data is not None}
    return frozenset(name for name in outputs if wishes.get(name, every))


# --- answers ---


def truncated(predictions: Sequence[Prediction]) -> bool:
    """Whether any text was longer than the version reads."""
    return any(prediction.truncated for prediction in predictions)


def tensors(outputs: Sequence[str], predictions: Sequence[Prediction]) -> list[Tensor]:
    return [_OUTPUTS[name](predictions) for name in outputs]


def inference_answer(asked: Inference, version: ModelVersion, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """As JSON; outputs in binary form are announced by their size alone. The parameter `truncated` is there when a text was cut."""
    answer: dict[str, Any] = {
        "model_name": version.model,
        "model_version": str(version.number),
        "outputs": [_described(tensor, asked.binary) for tensor in tensors(asked.outputs, predictions)],
    }
    if truncated(predictions):
        answer["parameters"] = {TRUNCATED: True}
    return answer if asked.id is None else {**answer, "id": asked.id}


def binary_data(asked: Inference, predictions: Sequence[Prediction]) -> bytes:
    """What follows the JSON of an answer with outputs in binary form."""
    return b"".join(tensor.packed() for tensor in tensors(asked.outputs, predictions) if tensor.name in asked.binary)


def _described(tensor: Tensor, binary: frozenset[str]) -> dict[str, Any]:
    head = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if tensor.name in binary:
        return {**head, "parameters": {"binary_data_size": len(tensor.packed())}}
    return {**head, "data": tensor.data}


def _labels(predictions: Sequence[Prediction]) -> Tensor:
    return Tensor("label", "BYTES", [len(predictions)], [prediction.label for prediction in predictions])


def _confidences(predictions: Sequence[Prediction]) -> Tensor:
    return Tensor("confidence", "FP32", [len(predictions)], [prediction.confidence for prediction in predictions])


def _probabilities(predictions: Sequence[Prediction]) -> Tensor:
    rows = [prediction.probabilities for prediction in predictions]
    return Tensor("probabilities", "FP32", [len(rows), len(rows[0])], [share for row in rows for share in row])


_OUTPUTS: Mapping[str, Callable[[Sequence[Prediction]], Tensor]] = {
    "label": _labels,
    "confidence": _confidences,
    "probabilities": _probabilities,
}


def model_metadata(model: str, loaded: Sequence[int], version: ModelVersion | None) -> dict[str, Any]:
    """`version` says how many labels there are; -1 while none is loaded."""
    labels = len(version.labels) if version else -1
    return {
        "name": model,
        "versions": [str(number) for number in loaded],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "confidence", "datatype": "FP32", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, labels]},
        ],
    }
