"""The files of a version and of a base, by name: what export writes, the registry keeps and serving loads.

A base is a graph that many versions run on: the pretrained model with every LoRA and head tensor as an overridable input.
A version is the small set of tensors to put there, with what is needed to prove that they answer as they did when judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# in the folder of a base
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
BASE_CARD = "base.json"  # BaseCard as JSON

# in the folder of a version
ADAPTER = "adapter.onnx_adapter"  # onnxruntime's format: what is served
WEIGHTS = "adapter.safetensors"  # the same tensors under their torch names: what the next run starts from
LABELS = "labels.json"  # a JSON list, in the order of the logits
GOLDEN = "golden.json"  # Golden as JSON

# written by the registry into both: {"files": {name: {"sha256": hex, "size": bytes}}}
MANIFEST = "MANIFEST.json"

GRAPH_INPUTS = ("input_ids", "attention_mask")
GRAPH_OUTPUT = "logits"


@dataclass(frozen=True, slots=True)
class BaseCard:
    """Which graph this is. Two exports with equal `identity` are interchangeable, so a run exports only a new one."""

    identity: str  # sha256 over pretrained weights, adapter shape, precision and exporter revision
    base: str
    weights_sha256: str
    adapter_inputs: Sequence[str]
    max_tokens: int
    precision: str = "fp32"  # of its weights, or "int8"


@dataclass(frozen=True, slots=True)
class Golden:
    """Texts and the logits the judged artefact gave for them; a loader must reproduce them within `tolerance`."""

    texts: Sequence[str]
    logits: Sequence[Sequence[float]]
    tolerance: float
