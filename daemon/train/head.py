"""A first fit for a head that was drawn at random: linear probing.

Before LoRA learns together with it, the head's last layer is fitted on what the frozen model makes of the examples. It
costs one forward pass, and the first steps of training then do not have to undo a random direction; with few or unbalanced
examples that decides whether the rarer labels are learnt at all.
"""

import torch

_PENALTY = 1.0  # of the weights' squares, for features of unit variance, over all examples
_MOST_ITERATIONS = 200


def last_layer(model: torch.nn.Module) -> torch.nn.Linear:
    """The linear layer that gives the logits: the last one that learns and is not LoRA's."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight.requires_grad and "lora_" not in name
    ][-1]


def fit(layer: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Logistic regression of `labels` (n) on `features` (n, in), in place; starts from zero, so chance plays no part."""
    penalty = _PENALTY * features.var() / (2 * len(features))
    weight = torch.zeros_like(layer.weight, requires_grad=True)
    bias = torch.zeros(layer.out_features, device=layer.weight.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MOST_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fitted = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels)
        total = fitted + penalty * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
