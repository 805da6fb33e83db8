"""What a policy file may say. Every field may change live: the file is read again at the start of each cycle.

`policies/default.yaml` is this file in words for operators; a test holds the two together.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, field_validator

from daemon.settings.units import Duration, Section, Share, written

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

# Evidently's methods that we name, with which side of the threshold is drift. Others are refused: a p-value read as a
# distance would never alarm.
DISTANCE_METHODS = ("jensenshannon", "psi", "wasserstein", "hellinger", "kl_div", "abs_text_content_drift")
P_VALUE_METHODS = (
    "ks",
    "chisquare",
    "z",
    "anderson",
    "mannw",
    "t_test",
    "cramer_von_mises",
    "perc_text_content_drift",
)


class ColumnTest(Section):
    """How one column is compared between the reference and the current window."""

    method: Literal[
        "jensenshannon", "psi", "wasserstein", "hellinger", "kl_div", "abs_text_content_drift",
        "ks", "chisquare", "z", "anderson", "mannw", "t_test", "cramer_von_mises", "perc_text_content_drift",
    ] = Field(description="Evidently's name of the test.")  # fmt: skip
    threshold: float = Field(gt=0, description="Distances alarm at or above it, p-values below it.")


ColumnName = Literal["label", "prediction", "confidence", "text", "text_length", "word_count"]
CATEGORICAL: tuple[ColumnName, ...] = ("label", "prediction")
NUMERICAL: tuple[ColumnName, ...] = ("confidence", "text_length", "word_count")
_FITTING = {
    "text": ("abs_text_content_drift", "perc_text_content_drift"),
    "label": ("jensenshannon", "psi", "hellinger", "kl_div", "chisquare", "z"),
    "prediction": ("jensenshannon", "psi", "hellinger", "kl_div", "chisquare", "z"),
}


class RecordsPolicy(Section):
    """Which records become examples."""

    unknown_label: Literal["dead_letter", "accept"] = Field(
        "dead_letter",
        description="A label that the config does not list: refuse the record, or let the label set grow at the next run.",
    )
    max_text_chars: Positive = Field(20_000, description="Longer texts are refused (characters).")


_DEFAULT_COLUMNS: dict[ColumnName, ColumnTest] = {
    "label": ColumnTest(method="jensenshannon", threshold=0.15),
    "text": ColumnTest(method="abs_text_content_drift", threshold=0.75),
}


class DriftPolicy(Section):
    """What is compared with what, and when that counts as drift."""

    observe_every: Duration = written("5m", "Time between two looks at the stream.")
    reference_examples: Positive = Field(
        2000, description="Size of the reference window: the newest examples the champion was trained up to."
    )
    current_examples: Positive = Field(1000, description="Size of the current window: the newest examples since then.")
    min_examples: Positive = Field(200, description="With fewer in either window drift is unknown, never 'none'.")
    confirmations: Positive = Field(2, description="Observations in a row that must say drift before it triggers.")
    min_drifted_columns: Positive = Field(
        1, description="Columns that must have drifted for the observation to say drift."
    )
    columns: dict[ColumnName, ColumnTest] = Field(
        default=_DEFAULT_COLUMNS,
        description="Columns to watch.",
    )

    @field_validator("columns")
    @classmethod
    def _methods_fit(cls, columns: dict[str, ColumnTest]) -> dict[str, ColumnTest]:
        text_only = _FITTING["text"]
        for name, test in columns.items():
            fitting = _FITTING.get(name)
            if fitting is not None and test.method not in fitting:
                raise ValueError(
                    f"column '{name}' cannot be tested with '{test.method}'; one of {', '.join(fitting)} can"
                )
            if fitting is None and test.method in (*text_only, "chisquare", "z"):
                raise ValueError(f"column '{name}' is a number; '{test.method}' is not a test for numbers")
        return columns


class DriftTrigger(Section):
    enabled: bool = True
    min_new_examples: Count = Field(500, description="New examples needed before drift starts a run.")


class PerformanceTrigger(Section):
    enabled: bool = True
    max_drop: Share = written("5%", "Accuracy points below what the champion reached at promotion.")
    min_examples: Positive = Field(200, description="New labelled examples needed to say so.")


class VolumeTrigger(Section):
    enabled: bool = True
    new_examples: Positive = Field(20_000, description="This many new examples start a run, drift or not.")


class ScheduleTrigger(Section):
    enabled: bool = False
    cron: str = Field("0 3 * * sun", description="Five cron fields, UTC. Write days as names: mon, tue, ... sun.")


class BootstrapTrigger(Section):
    min_examples: Positive = Field(1000, description="Train split examples needed for the first version.")


class Triggers(Section):
    """What starts a run. An operator's `relearnd retrain` always does, cool-down or not."""

    bootstrap: BootstrapTrigger = BootstrapTrigger()
    drift: DriftTrigger = DriftTrigger()
    performance: PerformanceTrigger = PerformanceTrigger()
    volume: VolumeTrigger = VolumeTrigger()
    schedule: ScheduleTrigger = ScheduleTrigger()
    cooldown: Duration = written("30m", "Least time between the end of a run and the next.")
    max_runs_per_day: Positive = Field(
        24, description="Runs in any 24 hours, operators' not counted against but included."
    )
    failure_backoff: Duration = written("5m", "Wait after a failed run; doubled for each further failure, at most 6h.")


class TrainingPolicy(Section):
    """How a challenger is fine-tuned from the champion."""

    lora_rank: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Rank of the LoRA matrices.")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA scale: alpha / rank.")
    lora_dropout: Share = written("5%", "Dropout before the LoRA matrices.")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Peak of the schedule: linear warm-up, linear decay.")
    head_learning_rate: float | None = Field(None, description="For the classification head; none: the same.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW.")
    warmup_share: Share = written("10%", "Share of the steps with a rising learning rate.")
    batch_size: Positive = Field(32, description="Examples a step.")
    epochs: Positive = Field(3, description="Passes over new and replayed examples.")
    max_examples: Positive = Field(20_000, description="Newest train examples used; older new ones are left to replay.")
    replay_share: Share = written("50%", "Replayed past examples, as a share of all that is trained on.")
    max_validation: Positive = Field(1000, description="Newest validation examples scored after each epoch.")
    patience: Positive = Field(2, description="Epochs without a better validation accuracy before training stops.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device is fast at it.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one.")
    threads: Positive = Field(1, description="torch threads; more than the free cores is slower, not faster.")
    time_limit: Duration = written("2h", "A run that takes longer is stopped and has failed.")
    stall_limit: Duration = written("5m", "A worker that makes no progress for so long is stopped and has failed.")
    seed: Count = Field(7, description="Seed of everything random in a run.")


class EvidenceGate(Section):
    min_examples: Positive = Field(200, description="Recent holdout examples; with fewer the verdict is inconclusive.")
    min_per_class: Count = Field(5, description="Holdout examples of each label in the holdout.")


class FloorGate(Section):
    accuracy: Share = written("50%", "Least accuracy on the whole holdout.")
    macro_f1: Share = written("40%", "Least macro F1 on the whole holdout.")


class NonInferiorityGate(Section):
    metric: Literal["accuracy", "macro_f1"] = "macro_f1"
    recent_margin: Share = written("0%", "How far below the champion on recent examples still passes (points).")
    past_margin: Share = written(
        "3%", "How far below the champion on past examples still passes: the forgetting that is allowed."
    )


class PerClassGate(Section):
    min_recall: Share = written("10%", "Least recall of each label with enough support.")
    min_support: Positive = Field(20, description="Labels with fewer holdout examples are not judged alone.")


class ParityGate(Section):
    max_abs_diff: float = Field(1e-3, gt=0, description="Largest logit difference between torch and onnxruntime.")
    min_agreement: Share = written("99.5%", "Least share of equal answers.")


class LatencyGate(Section):
    max_p99_ms: float = Field(
        250.0, gt=0, description="Single-text inference, 99th percentile, measured by the worker."
    )


class Gates(Section):
    """All must pass. A number that is missing or not finite is inconclusive, and inconclusive never promotes."""

    evidence: EvidenceGate = EvidenceGate()
    floor: FloorGate = FloorGate()
    non_inferiority: NonInferiorityGate = NonInferiorityGate()
    per_class: PerClassGate = PerClassGate()
    parity: ParityGate = ParityGate()
    latency: LatencyGate = LatencyGate()
    max_holdout: Positive = Field(
        2000,
        description="Holdout examples scored per slice (recent, past): the newest recent ones, past ones drawn by hash.",
    )


class Rollout(Section):
    approval: Literal["automatic", "operator"] = Field(
        "automatic",
        description="What happens when all gates pass: promote at once, or wait for `relearnd promote N`.",
    )


class Policy(Section):
    version: Literal[1] = Field(1, description="Version of this format.")
    records: RecordsPolicy = RecordsPolicy()
    drift: DriftPolicy = DriftPolicy()
    triggers: Triggers = Triggers()
    training: TrainingPolicy = TrainingPolicy()
    gates: Gates = Gates()
    rollout: Rollout = Rollout()

    @property
    def hash(self) -> str:
        """sha256 over the resolved values: two files that mean the same have the same hash."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
