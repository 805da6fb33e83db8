"""torch to ONNX, once per base: a graph in which every learning tensor is an input with a default.

Whoever runs the graph may give those tensors anew for each call, of any LoRA rank and any number of labels. So a new version
is a small file, and the graph is exported again only when its identity changes. The LoRA scale is not in the graph: it
belongs into lora_B.
"""

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch
from onnx import numpy_helper
from torch.export import Dim

from daemon.core.artefact import BASE_CARD, GRAPH, GRAPH_INPUTS, GRAPH_OUTPUT, TOKENIZER, BaseCard
from daemon.core.errors import RunError

EXPORTER_REVISION = 1
"""Raise it when the code below makes another graph from the same model; bases exported before are then left alone."""

_BATCH = Dim("batch", min=1, max=4096)
_RANK = Dim("rank", min=1, max=256)
_LABELS = Dim("labels", min=2, max=4096)
_SAMPLE_RANK, _SAMPLE_LABELS, _SAMPLE_BATCH, _SAMPLE_TOKENS = 2, 3, 2, 16


def base_identity(*, weights_sha256: str, architecture: str, tokenizer_json: str, adapter_inputs: Sequence[str]) -> str:
    """sha256 over everything that the exported base depends on."""
    parts = [EXPORTER_REVISION, weights_sha256, architecture, tokenizer_json, sorted(adapter_inputs)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def export_base(
    folder: Path,
    card: BaseCard,
    model: torch.nn.Module,
    adapter: Mapping[str, torch.nn.Parameter],
    tokenizer_json: str,
) -> None:
    """Write graph, tokenizer and card to `folder`. Raises RunError.

    `model` takes input_ids and attention_mask, both (batch, tokens) int64, and gives `.logits` (batch, labels); its LoRA scale
    is 1. `adapter` are its learning parameters by input name; the last one's module is the layer with a row for each label.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / GRAPH
    try:
        with quiet():
            _export_graph(graph, model, adapter, max_tokens=card.max_tokens)
        _add_defaults(graph, adapter)
    except Exception as error:  # torch's exporter raises nearly anything
        raise RunError(
            f"{type(model).__name__} cannot be exported to ONNX: {type(error).__name__}: {error}; try another task.base"
        ) from error
    (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
    (folder / BASE_CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card)))


class _WithAdapter(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """The model as a function of texts and learning tensors."""

    def __init__(self, model: torch.nn.Module, parameters: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.parameters_replaced = parameters

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, adapter: list[torch.Tensor]) -> Any:
        replaced = dict(zip(self.parameters_replaced, adapter, strict=True))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return torch.func.functional_call(self.model, replaced, args=(), kwargs=inputs).logits


def _export_graph(
    path: Path, model: torch.nn.Module, adapter: Mapping[str, torch.nn.Parameter], *, max_tokens: int
) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tokens = torch.ones((_SAMPLE_BATCH, _SAMPLE_TOKENS), dtype=torch.int64)
    axes = {0: _BATCH, 1: Dim("tokens", min=1, max=max_tokens)}
    torch.onnx.export(
        # eval() on the outermost module: otherwise export leaves the model in training mode, with dropout
        _WithAdapter(model, [names[id(parameter)] for parameter in adapter.values()]).eval(),
        (tokens, torch.ones_like(tokens), list(_samples(adapter).values())),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=[*GRAPH_INPUTS, *adapter],
        output_names=[GRAPH_OUTPUT],
        dynamic_shapes={
            "input_ids": axes,
            "attention_mask": axes,
            "adapter": list(_dynamic_axes(adapter).values()),
        },
    )


def _dynamic_axes(adapter: Mapping[str, torch.nn.Parameter]) -> dict[str, dict[int, Any]]:
    """Which axis of each learning tensor may differ between versions."""
    label_layer = list(adapter)[-1].rpartition(".")[0]

    def axes(name: str) -> dict[int, Any]:
        if "lora_A" in name:
            return {0: _RANK}
        if "lora_B" in name:
            return {1: _RANK}
        return {0: _LABELS} if name.rpartition(".")[0] == label_layer else {}

    return {name: axes(name) for name in adapter}


def _samples(adapter: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Zeros of sizes that depend on no run, so that every run of one identity exports the same graph."""
    sizes = {_RANK: _SAMPLE_RANK, _LABELS: _SAMPLE_LABELS}
    samples = {}
    for name, axes in _dynamic_axes(adapter).items():
        shape = list(adapter[name].shape)
        for axis, dim in axes.items():
            shape[axis] = sizes[dim]
        samples[name] = torch.zeros(shape)
    return samples


def _add_defaults(path: Path, adapter: Mapping[str, torch.nn.Parameter]) -> None:
    """An initializer with the name of an input makes that input optional."""
    graph = onnx.load(str(path))
    graph.graph.initializer.extend(
        numpy_helper.from_array(sample.numpy(), name) for name, sample in _samples(adapter).items()
    )
    onnx.save(graph, str(path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and quantisers speak at length about their own insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
