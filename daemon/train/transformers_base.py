"""The pretrained model a run starts from, found and loaded with transformers. Weights are read from safetensors only."""

import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from daemon.core.errors import RunError

_PACKAGE = "package:"
_NOT_ARCHITECTURE = ("_name_or_path", "id2label", "label2id", "num_labels", "problem_type", "transformers_version")


@dataclass(frozen=True, slots=True)
class PretrainedBase:
    """`fresh` names the modules whose weights are random because the checkpoint does not have them: the head.

    `weights_sha256` is over the others, `architecture` is the model's configuration without what depends on the labels.
    `max_tokens` is the most it can read.
    """

    model: torch.nn.Module
    fresh: Sequence[str]
    weights_sha256: str
    architecture: str
    tokenizer_json: str
    max_tokens: int


def load_base(base: str, *, labels: int) -> PretrainedBase:
    """`base` as in RunSpec. The head has `labels` outputs and is drawn from torch's generator. Raises RunError."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    location = locate(base)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            location,
            num_labels=labels,
            dtype=torch.float32,
            attn_implementation="eager",  # on short texts the fused kernels are slower
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"base model '{base}' cannot be loaded: {error}. Give a folder with config.json, model.safetensors and "
            f"tokenizer.json, package:NAME, or set HF_HUB_OFFLINE=0 to let a name be downloaded"
        ) from error
    fresh = sorted({_module_of(key) for key in (*info["missing_keys"], *_mismatched(info))})
    return PretrainedBase(
        model=model,
        fresh=fresh,
        weights_sha256=_weights_sha256(model, fresh),
        architecture=_architecture(model.config),
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        max_tokens=min(getattr(model.config, "max_position_embeddings", math.inf), tokenizer.model_max_length),
    )


def locate(base: str) -> str:
    """For package:NAME the package's shallowest folder with a config.json; anything else is for transformers to find."""
    if not base.startswith(_PACKAGE):
        return base
    name = base.removeprefix(_PACKAGE)
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # NAME is inside another package, or no name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise RunError(
            f"base model '{base}': there is no installed Python package '{name}'; install it or change task.base"
        )
    package = Path(spec.submodule_search_locations[0])
    configs = sorted(package.rglob("config.json"), key=lambda path: (len(path.parts), path))
    if not configs:
        raise RunError(f"base model '{base}': the package holds no config.json; it ships no model")
    return str(configs[0].parent)


def _weights_sha256(model: torch.nn.Module, fresh: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if _module_of(name) not in fresh:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _architecture(config: PretrainedConfig) -> str:
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_ARCHITECTURE}
    return json.dumps(settings, sort_keys=True, default=str)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _mismatched(info: dict[str, Any]) -> list[str]:
    return [entry[0] for entry in info["mismatched_keys"]]
