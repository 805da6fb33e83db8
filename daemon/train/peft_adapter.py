"""What of the model learns: LoRA matrices beside attention's query and value, and the head. With peft.

Outside this module an adapter is a mapping from tensor name to numpy array, the LoRA scale already multiplied into lora_B,
so that adapters of any rank and alpha run on one graph.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from daemon.core.errors import RunError

Tensors = Mapping[str, NDArray[np.float32]]

# What transformers' architectures call the projections to query and value.
_QUERY_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("Wqkv",),
)
_HEADS = ("classifier", "score")


def attach_adapter(
    model: torch.nn.Module, fresh: Sequence[str], *, rank: int, alpha: float, dropout: float
) -> PeftModel:
    """Freeze `model`, add LoRA matrices of `rank`, and let the head and the modules in `fresh` learn in full."""
    head = [name for name, _ in model.named_children() if name in _HEADS]
    beside_head = [name for name in fresh if name.partition(".")[0] not in head]
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(_query_and_value(model)),
            modules_to_save=[*head, *beside_head],
        ),
    )


def _query_and_value(model: torch.nn.Module) -> tuple[str, ...]:
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for names in _QUERY_VALUE:
        if linear.issuperset(names):
            return names
    raise RunError(
        f"LoRA does not know the attention of {type(model).__name__}: none of "
        f"{', '.join('/'.join(names) for names in _QUERY_VALUE)} is among its linear layers ({', '.join(sorted(linear))})"
    )


def adapter_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The learning parameters by tensor name: the names that the same tensors have in files and in the graph."""
    return {
        tensor_name(name): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name or "modules_to_save" in name
    }


def tensor_name(parameter: str) -> str:
    """peft's name of a parameter without peft's own wrapping."""
    return parameter.removeprefix("base_model.model.").replace(".modules_to_save", "").replace(".default", "")


def read_adapter(model: PeftModel) -> Tensors:
    """Copies, on the CPU."""
    scales = _scales(model)
    return {
        name: (parameter.detach().cpu().float() * scales.get(name, 1.0)).numpy().copy()
        for name, parameter in adapter_parameters(model).items()
    }


def warm_start(model: PeftModel, parent: Tensors) -> None:
    """Continue from `parent`: its LoRA matrices brought to this rank and scale, its head in the first rows of ours.

    Rows for labels that the parent does not have stay as they were drawn. Raises RunError when the tensors are others.
    """
    parameters = adapter_parameters(model)
    if parameters.keys() != parent.keys():
        odd = sorted(parameters.keys() ^ parent.keys())
        raise RunError(f"the parent's adapter fits another base model: {len(odd)} tensors differ, first '{odd[0]}'")
    start = dict(parent)
    for name_b, scale in _scales(model).items():
        name_a = name_b.replace("lora_B", "lora_A")
        start[name_a], b = fit_rank(parent[name_a], parent[name_b], parameters[name_b].shape[1])
        start[name_b] = b / np.float32(scale)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter[: len(start[name])] = torch.from_numpy(start[name])


def fit_rank(
    a: NDArray[np.float32], b: NDArray[np.float32], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """LoRA matrices A (r, in) and B (out, r) for another rank. Larger: B gets zero columns, A keeps its r rows and B @ A
    its value, whatever the further rows of A. Smaller: the closest B @ A of that rank."""
    if rank >= len(a):
        return a, np.pad(b, ((0, 0), (0, rank - len(a))))
    left, strengths, right = np.linalg.svd(b @ a, full_matrices=False)
    root = np.sqrt(strengths[:rank])
    return right[:rank] * root[:, None], left[:, :rank] * root


def fold_scale(model: PeftModel) -> None:
    """Multiply the LoRA scale into lora_B: the same function, with nothing but tensors to tell it from another."""
    tensors = read_adapter(model)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(torch.from_numpy(tensors[name]))
    for module in _lora_layers(model).values():
        module.scaling["default"] = 1.0


def _scales(model: PeftModel) -> dict[str, float]:
    """alpha / rank by the name of the lora_B it belongs to."""
    return {
        tensor_name(f"{name}.lora_B.default.weight"): float(module.scaling["default"])
        for name, module in _lora_layers(model).items()
    }


def _lora_layers(model: PeftModel) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_B")}
