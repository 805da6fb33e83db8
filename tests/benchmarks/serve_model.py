"""What `make bench-serve` serves: one adapter trained by the real worker on real tweets, on its fp32 base and on the int8 one."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from daemon.core.artefact import ADAPTER, BASE_CARD, GRAPH, TOKENIZER, BaseCard
from daemon.core.types import Aliases, ModelVersion, QuantizationReport, RunResult, RunSpec
from daemon.demo import tweets
from daemon.export.adapter_files import GOLDEN_TEXTS, write_golden
from daemon.export.parity import compare_int8
from daemon.export.quantize import quantize_base
from daemon.policy.gates import quantized_well
from daemon.policy.schema import ExportPolicy, Policy, TrainingPolicy
from daemon.registry.file_registry import FileRegistry
from daemon.runtime.records import decode
from daemon.serve.ort_loader import OrtLoader, Servable, load_servable
from daemon.tasks.classification import label_ids
from tests.integration import test_worker as worker

MODEL = "tweets"
TRAIN, CALIBRATION, HOLDOUT, TEXTS = 600, 128, 400, 512
TOKENS = range(8, 25)
POLICY = Policy(training=TrainingPolicy(epochs=2, batch_size=16, learning_rate=2e-3, max_validation=20))


@dataclass(frozen=True)
class Model:
    """`registries` and `plans` (see serving/graph.py) by precision; `facts` for the report."""

    folder: Path
    registries: Mapping[str, Path]
    plans: Mapping[str, Path]
    facts: Mapping[str, Any]


def model(folder: Path) -> Model:
    """From the cache, or made now."""
    facts = folder / "facts.json"
    if not facts.exists():
        shutil.rmtree(folder, ignore_errors=True)
        facts_found = _make(folder)
        facts.write_text(json.dumps(facts_found))  # last: what says that all of it is there
    both = ("fp32", "int8")
    return Model(
        folder,
        {precision: folder / precision / "registry" for precision in both},
        {precision: folder / precision / "plan.json" for precision in both},
        json.loads(facts.read_text()),
    )


def _make(folder: Path) -> dict[str, Any]:
    print(f"training on {TRAIN} tweets, once", flush=True)
    airline = [tweet for tweet in tweets.stream(seed=1) if tweet.source == "airline"]
    holdout = airline[TRAIN : TRAIN + HOLDOUT]
    runs = {precision: folder / precision / "run" for precision in ("fp32", "int8")}
    registries = {p: FileRegistry.open_for_writing(folder / p / "registry") for p in runs}
    spec = worker.prepare(
        runs["fp32"], folder / "fp32" / "registry", train=airline[:TRAIN], holdout=holdout, policy=POLICY
    )
    result = worker.train(runs["fp32"], spec)
    fp32 = _served(registries["fp32"], spec, result, runs["fp32"])
    examples = fp32[1].encode([tweet.text for tweet in airline[:CALIBRATION]])
    int8_result = _quantize(runs["fp32"], runs["int8"], result, spec, examples)
    int8 = _served(registries["int8"], spec, int8_result, runs["int8"])

    texts = [tweet.text for tweet in holdout]
    truth = label_ids([tweet.label for tweet in holdout], result.labels)
    quantization = compare_int8(truth, fp32[1].logits(texts), int8[1].logits(texts))
    for precision, (version, servable) in {"fp32": fp32, "int8": int8}.items():
        _write_plan(folder / precision / "plan.json", registries[precision], version, servable, airline)
    return _facts(quantization)


def _served(registry: FileRegistry, spec: RunSpec, result: RunResult, folder: Path) -> tuple[ModelVersion, Servable]:
    version = worker.take_in(registry, spec, result, folder)
    registry.move(MODEL, Aliases(0, version.number, None, None, worker.NOON, "a benchmark"))
    return version, OrtLoader(registry, threads=1).load(version)


def _quantize(
    source: Path, target: Path, result: RunResult, spec: RunSpec, examples: Sequence[Sequence[int]]
) -> RunResult:
    """The same adapter on the int8 base, with golden outputs of its own."""
    card = decode((source / "base" / BASE_CARD).read_bytes(), BaseCard)
    quantize_base(source / "base", target / "base", card, artefact=source / "artefact", examples=examples)
    shutil.copytree(source / "artefact", target / "artefact")
    servable = load_servable(target / "base", target / "artefact", max_tokens=spec.max_tokens, threads=1)
    write_golden(target / "artefact", servable.logits(GOLDEN_TEXTS))
    return replace(result, precision="int8")


def _write_plan(
    path: Path, registry: FileRegistry, version: ModelVersion, servable: Servable, stream: Sequence[tweets.Tweet]
) -> None:
    base = registry.base_folder(version.base)
    texts = _texts(base / TOKENIZER, stream)
    plan = {
        "graph": str(base / GRAPH),
        "tokenizer": str(base / TOKENIZER),
        "adapter": str(registry.artefact_folder(version) / ADAPTER),
        "labels": list(version.labels),
        "max_tokens": version.max_tokens,
        "texts": texts,
        "expected": [prediction.label for prediction in servable.predict(texts)],
    }
    path.write_text(json.dumps(plan))


def _texts(tokenizer: Path, stream: Sequence[tweets.Tweet]) -> list[str]:
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.no_truncation()
    return [tweet.text for tweet in stream if len(reader.encode(tweet.text).ids) in TOKENS][:TEXTS]


def _facts(quantization: QuantizationReport) -> dict[str, Any]:
    judged = quantized_well(quantization, ExportPolicy())
    return {
        "texts": f"{TEXTS} tweets of {TOKENS.start} to {TOKENS.stop - 1} tokens",
        "int8_agreement": round(float(np.float64(quantization.agreement)), 4),
        "int8_accuracy": quantization.accuracy,
        "fp32_accuracy": quantization.fp32_accuracy,
        "int8_gate": f"{judged.outcome}: {judged.reason}",
    }
