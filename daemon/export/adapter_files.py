"""The files of a version, written and read back: tensors for onnxruntime, the same for the next run, labels, golden outputs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import safetensors.numpy
from numpy.typing import NDArray

from daemon.core.artefact import ADAPTER, GOLDEN, LABELS, WEIGHTS, Golden
from daemon.core.errors import RunError

Tensors = Mapping[str, NDArray[np.float32]]

GOLDEN_TEXTS = (
    "Yes.",
    "Thank you so much, this is exactly what I hoped for!",
    "Still waiting. Third day, third answer, no refund.",
    "The meeting was moved from Tuesday to Thursday at 10:30.",
    "@someone http://example.com #thing 😀 naïve café — 東京",
    "It does what it says, more or less, and nobody here has had reason to complain or to be delighted about it so far, "
    "although the manual could be shorter and the box it comes in could be a good deal smaller than it is.",
)
"""Made up, so that no example's text leaves the run: what they must prove is that numbers come out the same."""

_GOLDEN_TOLERANCE = 1e-3  # logits; other CPUs and builds of onnxruntime differ by about 1e-5


def write_weights(folder: Path, tensors: Tensors, labels: Sequence[str]) -> None:
    """Everything of a version but its golden outputs, which only the written files can give."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_adapter(folder / ADAPTER, tensors)
    safetensors.numpy.save_file(dict(tensors), folder / WEIGHTS)
    (folder / LABELS).write_text(json.dumps(list(labels), ensure_ascii=False), encoding="utf-8")


def _write_adapter(path: Path, tensors: Tensors) -> None:
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path.absolute()))


def write_golden(folder: Path, logits: NDArray[np.float32]) -> None:
    """`logits` (texts, labels): what onnxruntime answered to GOLDEN_TEXTS from the files in `folder`."""
    golden = Golden(texts=GOLDEN_TEXTS, logits=logits.tolist(), tolerance=_GOLDEN_TOLERANCE)
    (folder / GOLDEN).write_bytes(msgspec.json.format(msgspec.json.encode(golden)))


def read_weights(folder: Path) -> Tensors:
    """What `write_weights` was given. Raises RunError."""
    path = folder / WEIGHTS
    try:
        tensors: Tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}; without it a run cannot start from this version") from error
    return tensors
