"""A base in 8 bits: weights of matrix products and embeddings, and what goes into the products; adapters and head stay fp32.

Faster and smaller, and not the same function: what comes out is for the gates to judge. The ranges of what goes into the products
are measured once on examples and fixed. onnxruntime's own way, to take them anew from each batch, lets an answer depend on what
else is in its batch.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from daemon.core.artefact import ADAPTER, BASE_CARD, GRAPH, GRAPH_INPUTS, TOKENIZER, BaseCard
from daemon.core.errors import RunError
from daemon.export.onnx_exporter import quiet

Ranges = Mapping[str, tuple[float, float]]  # least and greatest value of a tensor

_QUANTIZED = ["MatMul", "Gather"]
_FUSED_DOMAIN = "com.microsoft"
_REVISION = 1
"""Raise it when the code below makes another graph from the same one."""


def int8_identity(identity: str) -> str:
    """Of the int8 base made from the fp32 base with `identity`."""
    return hashlib.sha256(f"int8 {_REVISION} {identity}".encode()).hexdigest()


def quantize_base(
    source: Path, target: Path, card: BaseCard, *, artefact: Path, examples: Sequence[Sequence[int]]
) -> None:
    """Write the int8 base of the fp32 base in folder `source`, whose card is `card`, to folder `target`. Raises RunError.

    Ranges are measured with the adapter in folder `artefact` on `examples`, token ids of one text each; a hundred will do.
    """
    target.mkdir(parents=True, exist_ok=True)
    try:
        model = onnx.load(str(source / GRAPH))
        with quiet():
            _write_int8(model, target / GRAPH, frozenset(card.adapter_inputs), artefact / ADAPTER, examples)
    except Exception as error:  # onnx and onnxruntime raise nearly anything
        raise RunError(
            f"{card.base} cannot be quantised: {type(error).__name__}: {error}; set export.precision to fp32"
        ) from error
    (target / TOKENIZER).write_bytes((source / TOKENIZER).read_bytes())
    int8 = replace(card, identity=int8_identity(card.identity), precision="int8")
    (target / BASE_CARD).write_bytes(msgspec.json.format(msgspec.json.encode(int8)))


def _write_int8(
    model: onnx.ModelProto, path: Path, adapter: frozenset[str], tensors: Path, examples: Sequence[Sequence[int]]
) -> None:
    """The adapter's defaults are taken out meanwhile: an input with a constant behind it would be quantised as one."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / GRAPH
        dynamic = _dynamic(model, unfinished, adapter)
        measured = [node.input[0] for node in dynamic.graph.node if node.op_type == "DynamicQuantizeLinear"]
        ranges = _ranges(model, unfinished, measured, tensors, examples)
    _fix(dynamic.graph, ranges)
    if _FUSED_DOMAIN not in {opset.domain for opset in dynamic.opset_import}:
        dynamic.opset_import.append(helper.make_opsetid(_FUSED_DOMAIN, 1))
    onnx.save(dynamic, str(path))


def _dynamic(model: onnx.ModelProto, path: Path, adapter: frozenset[str]) -> onnx.ModelProto:
    """As onnxruntime quantises it, the ranges being taken from each batch. `model` stays as it is; `path` is overwritten."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    defaults = [tensor for tensor in bare.graph.initializer if tensor.name in adapter]
    for tensor in defaults:
        bare.graph.initializer.remove(tensor)
    del bare.graph.value_info[:]  # the exporter's shapes are not the quantiser's
    quantize_dynamic(bare, path, op_types_to_quantize=_QUANTIZED, per_channel=True, weight_type=QuantType.QInt8)
    quantized = onnx.load(str(path))
    quantized.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in adapter)
    return quantized


def _ranges(
    model: onnx.ModelProto, path: Path, names: Sequence[str], adapter: Path, examples: Sequence[Sequence[int]]
) -> Ranges:
    """Of the named tensors of the fp32 graph, over all examples. `path` is overwritten."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(watched, str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    loaded, run = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    loaded.Load(str(adapter.absolute()))
    run.add_active_adapter(loaded)
    ranges = dict.fromkeys(names, (0.0, 0.0))  # zero is always among them: it must be exact
    for row in examples:
        ids = np.array([row], dtype=np.int64)
        found = session.run(list(names), dict(zip(GRAPH_INPUTS, (ids, np.ones_like(ids)), strict=True)), run)
        for name, values in zip(names, found, strict=True):
            least, greatest = ranges[name]
            ranges[name] = min(least, float(values.min())), max(greatest, float(values.max()))
    return ranges


def _fix(graph: onnx.GraphProto, ranges: Ranges) -> None:
    """Replace each range taken from the batch by the measured one, and what follows it by one fused product, the fastest."""
    nodes = list(graph.node)
    maker = {output: place for place, node in enumerate(nodes) for output in node.output}
    takers: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for name in node.input:
            takers.setdefault(name, []).append(place)
    replaced: dict[int, onnx.NodeProto | None] = {}
    for place, node in enumerate(nodes):
        if node.op_type != "DynamicQuantizeLinear":
            continue
        values, scale, zero = node.output
        graph.initializer.extend(_constants(scale, zero, *ranges[node.input[0]]))
        replaced[place] = helper.make_node("QuantizeLinear", [node.input[0], scale, zero], [values], name=node.name)
        for product in takers[values]:  # product -> cast -> times (scale times the weights' scale)
            integer = nodes[product]
            [cast] = takers[integer.output[0]]
            [times] = takers[nodes[cast].output[0]]
            [scales] = [maker[name] for name in nodes[times].input if name != nodes[cast].output[0]]
            [weights_scale] = [name for name in nodes[scales].input if name != scale]
            inputs = [values, integer.input[1], scale, weights_scale, zero, integer.input[3]]
            replaced |= {cast: None, times: None, scales: None}
            replaced[product] = helper.make_node(
                "MatMulIntegerToFloat", inputs, list(nodes[times].output), name=integer.name, domain=_FUSED_DOMAIN
            )
    del graph.node[:]
    graph.node.extend(node for place, old in enumerate(nodes) if (node := replaced.get(place, old)) is not None)


def _constants(scale: str, zero: str, least: float, greatest: float) -> list[onnx.TensorProto]:
    """Scale and zero point of uint8 over the range."""
    step = max(greatest - least, float(np.finfo(np.float32).tiny)) / 255
    return [
        numpy_helper.from_array(np.array(step, np.float32), scale),
        numpy_helper.from_array(np.array(round(-least / step), np.uint8), zero),
    ]
