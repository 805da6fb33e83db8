"""Fine-tuning: our own loop, small enough to read. AdamW, linear warm-up and decay, batches of similar length, the best
weights by validation kept. Where a GPU is, it trains there; the model comes back on the CPU."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from daemon.core.errors import RunError
from daemon.policy.schema import TrainingPolicy
from daemon.tasks.classification import ABSENT, Encoded, ordered_batches, pad, shuffled_batches
from daemon.train import head

_SCORING_BATCH = 64
_MAX_GRADIENT = 1.0  # L2 norm


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how exactly it is computed: "cpu" or "cuda:N"; "fp32" or "bf16" (autocast, weights stay fp32)."""

    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """`final_loss` is the mean of the last epoch, `validation_accuracy` that of the kept weights, NaN without validation."""

    steps: int
    epochs: int
    final_loss: float
    validation_accuracy: float


@dataclass(frozen=True, slots=True)
class Step:
    """Steps done of those planned, with the loss of the newest. Early stopping does fewer than planned."""

    done: int
    planned: int
    epoch: int
    loss: float


def choose_placement(policy: TrainingPolicy) -> Placement:
    """Raises RunError when the policy asks for a GPU that is not there."""
    if policy.device == "cuda" and not torch.cuda.is_available():
        raise RunError("policy training.device is 'cuda', but torch sees no GPU here; set it to 'auto' or 'cpu'")
    on_gpu = policy.device != "cpu" and torch.cuda.is_available()
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
    precision = policy.precision
    if precision == "auto":
        precision = "bf16" if _fast_bf16(on_gpu) else "fp32"
    return Placement(device, precision)


def _fast_bf16(on_gpu: bool) -> bool:
    if on_gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def seed_everything(seed: int) -> None:
    """Two runs on one machine with one seed and one thread give the same weights."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # finds bugs, and takes a tenth of the time


def finetune(
    model: torch.nn.Module,
    train: Encoded,
    validation: Encoded,
    policy: TrainingPolicy,
    placement: Placement,
    *,
    seed: int,
    fresh_head: bool,
    on_step: Callable[[Step], None],
) -> TrainingOutcome:
    """Train the parameters of `model` that require gradients; leaves it on the CPU, in evaluation mode, at its best.

    With `fresh_head` the head is fitted alone first. Raises RunError when the loss is not finite.
    """
    loop = _Loop(model.to(placement.device), policy, placement, np.random.default_rng(seed))
    try:
        if fresh_head:
            loop.fit_head(train)
        return loop.run(train, validation, on_step)
    finally:
        model.to("cpu").eval()


class _Loop:
    def __init__(
        self,
        model: torch.nn.Module,
        policy: TrainingPolicy,
        placement: Placement,
        rng: np.random.Generator,
    ) -> None:
        self._model = model
        self._policy = policy
        self._placement = placement
        self._rng = rng
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(self, train: Encoded, validation: Encoded, on_step: Callable[[Step], None]) -> TrainingOutcome:
        planned = self._policy.epochs * math.ceil(len(train) / self._policy.batch_size)
        optimizer = self._optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_schedule(planned, self._policy.warmup_share))
        best = _Best(self._learning)
        steps = epoch = 0
        losses: list[float] = []
        while epoch < self._policy.epochs and best.epochs_since < self._policy.patience:
            epoch += 1
            losses = []
            self._training_mode()
            for batch in shuffled_batches([len(row) for row in train.tokens], self._policy.batch_size, self._rng):
                losses.append(self._step(train, batch, optimizer))
                schedule.step()
                steps += 1
                on_step(Step(steps, planned, epoch, losses[-1]))
            best.offer(self._score(validation))
        best.restore()
        return TrainingOutcome(steps, epoch, float(np.mean(losses)), best.accuracy)

    def fit_head(self, train: Encoded) -> None:
        layer = head.last_layer(self._model)
        features: list[torch.Tensor] = []
        order: list[int] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach().float()))
        self._model.eval()
        with torch.inference_mode():
            for batch in ordered_batches([len(row) for row in train.tokens], _SCORING_BATCH):
                self._logits(train, batch)
                order += batch.tolist()
        hook.remove()
        labels = torch.from_numpy(train.labels[order]).to(self._placement.device)
        head.fit(layer, torch.cat(features).clone(), labels)

    def _training_mode(self) -> None:
        """Dropout acts where something learns. The frozen base stays as it is: noise in it costs time and teaches nothing."""
        self._model.eval()
        for name, module in self._model.named_modules():
            if "lora_dropout" in name:
                module.train()

    def _optimizer(self) -> torch.optim.Optimizer:
        head_rate = self._policy.head_learning_rate or self._policy.learning_rate
        lora = [p for name, p in self._model.named_parameters() if p.requires_grad and "lora_" in name]
        head = [p for name, p in self._model.named_parameters() if p.requires_grad and "lora_" not in name]
        return torch.optim.AdamW(
            [{"params": lora, "lr": self._policy.learning_rate}, {"params": head, "lr": head_rate}],
            weight_decay=self._policy.weight_decay,
        )

    def _step(self, data: Encoded, batch: NDArray[np.int64], optimizer: torch.optim.Optimizer) -> float:
        truth = torch.from_numpy(data.labels[batch]).to(self._placement.device)
        loss = torch.nn.functional.cross_entropy(self._logits(data, batch), truth)
        value: float = loss.item()
        if not math.isfinite(value):
            raise RunError(
                f"training diverged: the loss became {value} at a learning rate of {self._policy.learning_rate:g}; "
                f"lower training.learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learning, _MAX_GRADIENT)
        optimizer.step()
        return value

    def _score(self, data: Encoded) -> "_Score":
        """Only examples whose label the model knows have a loss; the others count as wrong."""
        self._model.eval()
        hits, loss = 0, 0.0
        with torch.inference_mode():
            for batch in ordered_batches([len(row) for row in data.tokens], _SCORING_BATCH):
                truth = torch.from_numpy(data.labels[batch]).to(self._placement.device)
                logits = self._logits(data, batch)
                hits += int((logits.argmax(dim=1) == truth).sum())
                loss += float(torch.nn.functional.cross_entropy(logits, truth, ignore_index=ABSENT, reduction="sum"))
        return _Score(hits / len(data), -loss) if len(data) else _Score(float("nan"), float("nan"))

    def _logits(self, data: Encoded, batch: NDArray[np.int64]) -> torch.Tensor:
        tokens, mask = pad([data.tokens[i] for i in batch])
        device = self._placement.device
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=self._placement.precision == "bf16"):
            output: Any = self._model(
                input_ids=torch.from_numpy(tokens).to(device), attention_mask=torch.from_numpy(mask).to(device)
            )
        logits: torch.Tensor = output.logits.float()
        return logits


def rate_schedule(steps: int, warmup_share: float) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak learning rate: up in a line, then down in a line to nearly nothing."""
    warmup = max(1, round(steps * warmup_share))

    def share(step: int) -> float:
        return min((step + 1) / warmup, max(steps - step, 0) / max(steps - warmup, 1))

    return share


@dataclass(frozen=True, slots=True, order=True)
class _Score:
    """Ordered: more right answers first, then the smaller loss."""

    accuracy: float
    minus_loss: float


class _Best:
    """The weights of the epoch with the best validation score; of the last epoch when there is nothing to score."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._score: _Score | None = None
        self._weights: list[torch.Tensor] = []
        self.epochs_since = 0

    @property
    def accuracy(self) -> float:
        return self._score.accuracy if self._score else float("nan")

    def offer(self, score: _Score) -> None:
        if self._score is None or math.isnan(score.accuracy) or score > self._score:
            self._score = score
            self._weights = [parameter.detach().clone() for parameter in self._parameters]
            self.epochs_since = 0
        else:
            self.epochs_since += 1

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, weights in zip(self._parameters, self._weights, strict=True):
                parameter.copy_(weights)


def answer(model: torch.nn.Module, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Logits (rows, labels) in fp32 on the CPU, in the order of `tokens`."""
    rows: dict[int, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for batch in ordered_batches([len(row) for row in tokens], _SCORING_BATCH):
            ids, mask = pad([tokens[i] for i in batch])
            output: Any = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            rows.update(zip(batch.tolist(), output.logits.float().numpy(), strict=True))
    return np.stack([rows[i] for i in range(len(tokens))])
