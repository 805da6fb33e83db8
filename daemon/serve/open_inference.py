"""KServe's Open Inference Protocol v2, the REST form: bytes to texts, predictions to the answer. Pure.

One input, `text` (BYTES, [N] or [N, 1]); three outputs, `label` (BYTES, [N]), `confidence` (FP32, [N]) and
`probabilities` (FP32, [N, K], K in the order of the version's labels).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from daemon.core.errors import UsageError
from daemon.core.types import ModelVersion, Prediction

T = TypeVar("T")

PLATFORM = "onnx_onnxv1"
INPUT = "text"


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """What a client asked for. `outputs` in the order asked; `id` is echoed."""

    texts: Sequence[str]
    outputs: Sequence[str]
    id: str | None


def parse_json(body: bytes, kind: type[T]) -> T:
    """Raises UsageError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise UsageError("the body is not JSON that can be read: it is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UsageError(f"the body is not the JSON that is expected here: {error}") from error


def parse_inference(body: bytes) -> Inference:
    """Raises UsageError that says what to send instead."""
    request = parse_json(body, _Request)
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        raise UsageError(f"send exactly one input, named '{INPUT}'; got {[tensor.name for tensor in request.inputs]}")
    outputs = [output.name for output in request.outputs or []]
    unknown = sorted(set(outputs) - _OUTPUTS.keys())
    if unknown:
        raise UsageError(f"unknown outputs {unknown}; there are {list(_OUTPUTS)}")
    return Inference(_texts(request.inputs[0]), outputs or list(_OUTPUTS), request.id)


def _texts(tensor: _Input) -> list[str]:
    if tensor.datatype != "BYTES":
        raise UsageError(f"input '{INPUT}' is of datatype BYTES; got '{tensor.datatype}'")
    if tensor.data is None:
        raise UsageError(
            f"input '{INPUT}' has no data; send it as JSON strings (the binary extension is not supported)"
        )
    rows = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in tensor.data]
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) != len(rows):
        raise UsageError(f"the data of input '{INPUT}' must be strings, [N] or [N, 1]")
    if tensor.shape not in ([len(texts)], [len(texts), 1]):
        raise UsageError(f"input '{INPUT}' has shape {tensor.shape}, but {len(texts)} texts")
    return texts


def inference_answer(asked: Inference, version: ModelVersion, predictions: Sequence[Prediction]) -> dict[str, Any]:
    answer = {
        "model_name": version.model,
        "model_version": str(version.number),
        "outputs": [{"name": name, **_OUTPUTS[name](predictions)} for name in asked.outputs],
    }
    return answer if asked.id is None else {**answer, "id": asked.id}


def _labels(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {"datatype": "BYTES", "shape": [len(predictions)], "data": [prediction.label for prediction in predictions]}


def _confidences(predictions: Sequence[Prediction]) -> dict[str, Any]:
    data = [prediction.confidence for prediction in predictions]
    return {"datatype": "FP32", "shape": [len(predictions)], "data": data}


def _probabilities(predictions: Sequence[Prediction]) -> dict[str, Any]:
    rows = [prediction.probabilities for prediction in predictions]
    return {"datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": [share for row in rows for share in row]}


_OUTPUTS: Mapping[str, Callable[[Sequence[Prediction]], dict[str, Any]]] = {
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
