"""Tiny but real: an ONNX base that opens in a millisecond, adapters for it, and versions of them in a registry.

The graph: embedding -> mean over unmasked tokens -> + low-rank update -> linear head. Rank and label count are free.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from daemon.core.artefact import ADAPTER, BASE_CARD, GOLDEN, GRAPH, LABELS, TOKENIZER, WEIGHTS, BaseCard, Golden
from daemon.core.types import (
    Aliases,
    DataManifest,
    EvalReport,
    Lineage,
    ModelVersion,
    ParityReport,
    RunResult,
    RunSpec,
    SliceScore,
    TrainingReport,
)
from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import load_servable

LABELS_OF_TWO = ("down", "up")
MAX_TOKENS = 16
MODEL = "tweets"
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
GOLDEN_TEXTS = ("good", "bad bad service", "on time and very good")

_WORDS = ("[PAD]", "[UNK]", "good", "bad", "late", "on", "time", "service", "flight", "crew", "very", "and", "warm")
_HIDDEN = 6
_ADAPTER_SHAPES = {"lora_A": ("rank", _HIDDEN), "lora_B": (_HIDDEN, "rank"), "head.weight": ("labels", _HIDDEN)}

Tensors = dict[str, NDArray[np.float32]]


def write_base(folder: Path, *, seed: int = 0) -> Path:
    """The files of a base: graph, tokenizer, card."""
    folder.mkdir(parents=True)
    defaults = adapter_tensors(2, seed=seed)
    onnx.save(_graph(defaults, seed), str(folder / GRAPH))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(length=50)  # as real tokenizer files do; a loader must not follow it
    tokenizer.save(str(folder / TOKENIZER))
    identity = hashlib.sha256(f"tiny {seed}".encode()).hexdigest()
    card = BaseCard(identity, "tiny", identity, sorted(defaults), MAX_TOKENS)
    (folder / BASE_CARD).write_bytes(msgspec.json.encode(card))
    return folder


def adapter_tensors(labels: int, *, seed: int, rank: int = 2) -> Tensors:
    rng = np.random.default_rng(seed)
    sizes = {"rank": rank, "labels": labels}
    shapes = {name: [sizes.get(side, side) for side in shape] for name, shape in _ADAPTER_SHAPES.items()}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**tensors, "head.bias": rng.normal(size=labels).astype(np.float32)}


def write_adapter(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()})
    adapter.export_adapter(str(path))


def write_artefact(folder: Path, base: Path, *, seed: int, labels: Sequence[str] = LABELS_OF_TWO) -> Path:
    """The files of a version, with golden outputs computed from them."""
    folder.mkdir(parents=True)
    write_adapter(folder / ADAPTER, adapter_tensors(len(labels), seed=seed))
    (folder / WEIGHTS).write_bytes(b"weights of seed %d" % seed)
    (folder / LABELS).write_text(json.dumps(list(labels)))
    servable = load_servable(base, folder, max_tokens=MAX_TOKENS, threads=1)
    golden = Golden(GOLDEN_TEXTS, servable.logits(GOLDEN_TEXTS).tolist(), tolerance=1e-4)
    (folder / GOLDEN).write_bytes(msgspec.json.encode(golden))
    return folder


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run folder with artefact and base, and what goes with it into `Registry.add`."""

    folder: Path
    spec: RunSpec
    result: RunResult
    lineage: Lineage


def finished_run(
    folder: Path, *, seed: int, labels: Sequence[str] = LABELS_OF_TWO, model: str = MODEL, base_seed: int = 0
) -> FinishedRun:
    base = write_base(folder / "base", seed=base_seed)
    write_artefact(folder / "artefact", base, seed=seed, labels=labels)
    return paper_run(folder, labels=labels, model=model)


def paper_run(folder: Path, *, labels: Sequence[str] = LABELS_OF_TWO, model: str = MODEL) -> FinishedRun:
    """The same without files; the folder's name is the run's id."""
    run_id = folder.name
    data = DataManifest(files={}, rows={}, sha256="d" * 64, data_cut=10, newest_occurred_at=NOON)
    spec = RunSpec(
        run_id, model, "classification", NOON, "tiny", "", labels, MAX_TOKENS, None, 1, "p" * 64, ["bootstrap"], data
    )
    nothing_to_score = SliceScore(0, float("nan"), float("nan"))
    report = EvalReport("e" * 64, 20, 0.9, 0.8, {}, {"past": nothing_to_score}, 1.0, 2.0)
    training = TrainingReport(10, 0, 5, 1, 1.0, "cpu", "fp32", 0.1, 0.9, 1)
    parity = ParityReport(3, 1e-6, 1.0)
    result = RunResult(run_id, labels, "", True, training, parity, report, None, {})
    lineage = Lineage(run_id, None, ["bootstrap"], "p" * 64, 1, "d" * 64, 10, 10, NOON, "0", {})
    return FinishedRun(folder, spec, result, lineage)


def version_of(number: int, *, labels: Sequence[str] = LABELS_OF_TWO) -> ModelVersion:
    """A version on paper: no files belong to it."""
    run = paper_run(Path(f"run-{number}"), labels=labels)
    report, parity = run.result.challenger, run.result.parity
    return ModelVersion(
        MODEL, number, "a" * 64, "b" * 64, labels, MAX_TOKENS, NOON, run.lineage, report, parity, "c" * 64
    )


def add_version(registry: FileRegistry, folder: Path, *, seed: int, **changes: object) -> ModelVersion:
    run = finished_run(folder, seed=seed, **changes)  # type: ignore[arg-type]
    return registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=NOON)


def spoil_golden(run: FinishedRun) -> None:
    """Write down outputs that its files do not give."""
    golden = run.folder / "artefact" / GOLDEN
    content = json.loads(golden.read_bytes())
    content["logits"][0][0] += 0.01
    golden.write_text(json.dumps(content))


def promote(registry: FileRegistry, number: int, *, model: str = MODEL) -> Aliases:
    aliases = registry.aliases(model)
    moved = Aliases(aliases.generation, number, None, aliases.champion, NOON, "a test")
    return registry.move(model, moved)


def _graph(defaults: Tensors, seed: int) -> onnx.ModelProto:
    table = np.random.default_rng(seed).normal(size=(len(_WORDS), _HIDDEN)).astype(np.float32)
    constants = {"table": table, "last": np.array([-1]), "one": np.float32(1).reshape(1), "tokens": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["embedded", "wide_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "one"], ["at_least_one"]),
        helper.make_node("Div", ["summed", "at_least_one"], ["mean"]),
        helper.make_node("Gemm", ["mean", "lora_A"], ["low"], transB=1),
        helper.make_node("Gemm", ["low", "lora_B"], ["update"], transB=1),
        helper.make_node("Add", ["mean", "update"], ["adapted"]),
        helper.make_node("Gemm", ["adapted", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    shapes = {**_ADAPTER_SHAPES, "head.bias": ("labels",)}
    adapter = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "labels"])
    initializers = [numpy_helper.from_array(value, name) for name, value in {**constants, **defaults}.items()]
    graph = helper.make_graph(nodes, "tiny", [*tokens, *adapter], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
