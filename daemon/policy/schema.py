"""What a policy file may say. Every field may change live: the file is read again at the start of each cycle.

`policies/default.yaml` is this file in words for operators; a test holds the two together.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from daemon.core.types import DriftTest
from daemon.policy.cron import checked
from daemon.settings.patterns import stalls_on
from daemon.settings.units import Duration, PositiveDuration, Section, Share, written

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

Method = Literal[
    "jensenshannon", "psi", "wasserstein", "hellinger", "kl_div", "abs_text_content_drift",
    "ks", "chisquare", "t_test", "cramer_von_mises",
]  # fmt: skip
ColumnName = Literal["label", "prediction", "confidence", "text", "text_length", "word_count"]

# Evidently names its tests alike whether a small or a large value means drift, and so must be told apart by us.
P_VALUE_METHODS: tuple[Method, ...] = ("ks", "chisquare", "t_test", "cramer_von_mises")
_UP_TO_ONE: tuple[Method, ...] = (*P_VALUE_METHODS, "jensenshannon", "hellinger", "abs_text_content_drift")
_FOR_NUMBERS: tuple[Method, ...] = (
    "jensenshannon", "psi", "wasserstein", "hellinger", "kl_div", "ks", "t_test", "cramer_von_mises",
)  # fmt: skip
_FOR_LABELS: tuple[Method, ...] = ("jensenshannon", "psi", "hellinger", "kl_div", "chisquare")
FITTING: Mapping[ColumnName, tuple[Method, ...]] = {
    "label": _FOR_LABELS,
    "prediction": _FOR_LABELS,
    "text": ("abs_text_content_drift",),
    "confidence": _FOR_NUMBERS,
    "text_length": _FOR_NUMBERS,
    "word_count": _FOR_NUMBERS,
}


class ColumnTest(Section):
    """How one column is compared between the reference and the current window."""

    method: Method = Field(description="Evidently's name of the test.")
    threshold: Annotated[float, Field(gt=0)] = Field(
        description="Distances alarm at or above it, p-values (ks, chisquare, t_test, cramer_von_mises) below it."
    )

    @field_validator("threshold")
    @classmethod
    def _can_say_both(cls, threshold: float, info: ValidationInfo) -> float:
        """A threshold that always or never alarms is a slip of the pen."""
        method = info.data.get("method")
        if method in _UP_TO_ONE and threshold >= 1:
            raise ValueError(f"'{method}' gives values up to 1; a threshold lies below, got {threshold:g}")
        if method == "abs_text_content_drift" and threshold <= 0.5:
            raise ValueError(
                f"'{method}' gives 0.5 when the texts cannot be told apart; a threshold lies above, got {threshold:g}"
            )
        return threshold


def _checked_pattern(pattern: str) -> str:
    try:
        matches_nothing = re.compile(pattern).search("")
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
    if matches_nothing:
        raise ValueError(f"'{pattern}' matches an empty text: it would say nothing about any")
    if (text := stalls_on(pattern)) is not None:
        raise ValueError(
            f"'{pattern}' takes too long on a text with {text}: write it so that there is one way only to match, as with "
            "'a++' in the place of 'a+'; in front and at the end '.*' is not needed"
        )
    return pattern


def _more_than_none(share: float) -> float:
    if share == 0:
        raise ValueError("0% would keep every example aside")
    return share


FieldName = Literal["id", "text", "label", "occurred_at", "source", "split", "subject"]


class QualityPolicy(Section):
    """What else is asked of the data: of texts and times (what is not so waits in quarantine), and of the stream as a whole."""

    min_chars: Positive = Field(1, description="Shorter texts are not trusted (characters).")
    max_chars: int | None = Field(
        None, ge=1, description="Longer texts are not trusted (characters); those beyond max_text_chars are refused."
    )
    must_match: str | None = Field(
        None,
        description="Regular expression that must be found in the text. Each costs about a microsecond a record.",
    )
    must_not_match: str | None = Field(None, description="Regular expression that must not be found in the text.")
    max_ahead: PositiveDuration = written(
        "1d",
        "An event time more than this after the record was read is not trusted: a producer's clock or unit is wrong.",
    )
    max_label_share: Share = written(
        "100%", "Label balance: of the newest share_window examples, the most that may have one label. 100%: any."
    )

    max_new_label_share: Share = written(
        "100%",
        "Of the newest reject_window records, the most with a new label: one that the config does not list and that none but the "
        "newest share_window examples has. 100%: any.",
    )
    max_null_share: dict[FieldName, Share] = Field(
        {},
        description="Of the newest reject_window records, the most without a field of kafka.fields (missing, null or empty), for "
        "example source: 5%. Costs 1 to 2 microseconds a record.",
    )
    failed_check: Literal["pause", "report"] = Field(
        "pause",
        description="When max_new_label_share or a max_null_share is exceeded: ingest pauses until an operator resumes it, or only "
        "the log, the status and the metrics say so.",
    )

    @field_validator("max_label_share")
    @classmethod
    def _some_of_each(cls, share: float) -> float:
        return _more_than_none(share)

    @field_validator("must_match", "must_not_match")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else _checked_pattern(pattern)


class RecordsPolicy(Section):
    """Which records become examples, which wait in quarantine for an operator, and which are refused or left out."""

    unknown_label: Literal["quarantine", "dead_letter", "accept"] = Field(
        "quarantine",
        description="A label that the config does not list: keep the example aside, refuse the record, or let the label set "
        "grow at the next run.",
    )
    max_text_chars: Positive = Field(20_000, description="Longer texts are refused (characters).")
    tombstone: Literal["skip", "dead_letter"] = Field(
        "skip", description="A record without a value: leave it out, or refuse it."
    )
    conflicts: Literal["quarantine", "accept"] = Field(
        "quarantine",
        description="An id, or exactly the same text, that came with another label before: keep the newer one aside, or take "
        "both.",
    )
    near_duplicates: Literal["accept", "skip"] = Field(
        "accept",
        description="Texts with one label that differ only in case, white space, punctuation, URLs, mentions or digits: take "
        "all, or only the first. Skipping costs about 10 microseconds a record.",
    )
    duplicate_window: Annotated[int, Field(ge=1, le=50_000_000)] = Field(
        500_000,
        description="Duplicates and conflicts are looked for in at least so many of the newest examples; 100 bytes of memory each.",
    )
    new_sources: Literal["accept", "quarantine", "dead_letter"] = Field(
        "accept",
        description="Sources that trusted_sources does not name and of which the newest examples hold none: take theirs, or "
        "keep them aside until an operator releases one. dead_letter: refuse all that trusted_sources does not name, known or "
        "not.",
    )
    trusted_sources: list[str] = Field(
        [], description="Sources that are never new. Of a record that names none it is the topic."
    )
    max_source_share: Share = written(
        "100%", "Of the newest share_window examples, the most that may come from one source. 100%: any."
    )
    share_window: Positive = Field(
        10_000, description="Examples over which max_source_share, max_label_share and what is a new label count."
    )
    max_reject_share: Share = written(
        "50%", "Share of the newest records refused or kept aside above which ingest pauses. 100%: never."
    )
    reject_window: Positive = Field(
        1000, description="Records over which max_reject_share, max_null_share and max_new_label_share count."
    )
    scrub: list[Literal["email", "phone", "iban", "card"]] = Field(
        [],
        description="Personal data replaced by <email>, <phone>, <iban>, <card> before anything is stored. 1 to 3 microseconds "
        "a kind and record of 160 bytes.",
    )
    scrub_patterns: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], str] = Field(
        {}, description="More to replace: the token's name and its regular expression, for example order: 'ORD-[0-9]+'."
    )
    quality: QualityPolicy = QualityPolicy()

    @field_validator("trusted_sources")
    @classmethod
    def _some_are_taken(cls, trusted: list[str], info: ValidationInfo) -> list[str]:
        if not trusted and info.data.get("new_sources") == "dead_letter":
            raise ValueError(
                "none is named while new_sources is dead_letter: every record would be refused; name those that may send, or set "
                "new_sources to quarantine or accept"
            )
        return trusted

    @field_validator("max_source_share")
    @classmethod
    def _some_of_each(cls, share: float) -> float:
        return _more_than_none(share)

    @field_validator("scrub_patterns")
    @classmethod
    def _are_patterns(cls, patterns: dict[str, str]) -> dict[str, str]:
        for pattern in patterns.values():
            _checked_pattern(pattern)
        return patterns


_DEFAULT_COLUMNS: dict[ColumnName, ColumnTest] = {
    "label": ColumnTest(method="jensenshannon", threshold=0.15),
    "text": ColumnTest(method="abs_text_content_drift", threshold=0.65),
}


class DriftPolicy(Section):
    """What is compared with what, and when that counts as drift."""

    observe_every: PositiveDuration = written("5m", "Time between two looks at the stream.")
    reference_examples: Positive = Field(
        2000, description="Size of the reference window: the newest examples the champion was trained up to."
    )
    current_examples: Positive = Field(1000, description="Size of the current window: the newest examples since then.")
    min_examples: Positive = Field(200, description="With fewer in either window drift is unknown, never 'none'.")
    confirmations: Positive = Field(2, description="Observations in a row that must say drift before it triggers.")
    columns: dict[ColumnName, ColumnTest] = Field(
        _DEFAULT_COLUMNS,
        description="Columns to watch, each with its test: label, prediction, confidence, text, text_length, word_count. "
        "Those written replace the default ones.",
    )
    min_drifted_columns: Positive = Field(
        1, description="Columns that must have drifted for the observation to say drift."
    )
    max_lateness: PositiveDuration | None = Field(
        None,
        description="Examples read more than this after they happened (a backfill, say) are left out of both windows, and of "
        "nothing else. With delayed labels it must be more than their delay.",
    )

    @field_validator("min_examples")
    @classmethod
    def _reachable(cls, least: int, info: ValidationInfo) -> int:
        for window in ("reference_examples", "current_examples"):
            most = info.data.get(window, least)
            if least > most:
                raise ValueError(f"{least} is more than {window}, {most}: drift would stay unknown for ever")
        return least

    @field_validator("columns")
    @classmethod
    def _methods_fit(cls, columns: dict[ColumnName, ColumnTest]) -> dict[ColumnName, ColumnTest]:
        misfits = [
            f"column '{name}' cannot be tested with '{test.method}'; one of {', '.join(FITTING[name])} can"
            for name, test in columns.items()
            if test.method not in FITTING[name]
        ]
        if misfits:
            raise ValueError("; ".join(misfits))
        return columns

    @field_validator("min_drifted_columns")
    @classmethod
    def _enough_columns(cls, least: int, info: ValidationInfo) -> int:
        watched = len(info.data.get("columns", range(least)))
        if least > watched:
            raise ValueError(f"{least} columns must drift, but only {watched} are watched")
        return least

    @property
    def tests(self) -> tuple[DriftTest, ...]:
        """The columns to watch as the detector takes them."""
        return tuple(
            DriftTest(name, test.method, test.threshold, is_p_value=test.method in P_VALUE_METHODS)
            for name, test in self.columns.items()
        )


class DriftTrigger(Section):
    """The stream is not what the champion was trained on."""

    enabled: bool = Field(True, description="Whether confirmed drift starts a run.")
    min_new_examples: Count = Field(
        500,
        description="Train examples needed since the window in which drift was first seen: what the challenger learns from. "
        "With the size of the reference window or more, the next reference is all of the new kind.",
    )


class PerformanceTrigger(Section):
    """The champion answers new labelled examples worse than when it was promoted."""

    enabled: bool = Field(True, description="Whether a fall of the champion's accuracy on new examples starts a run.")
    max_drop: Share = written("5%", "Accuracy points below what the champion reached at promotion.")
    min_examples: Positive = Field(200, description="New labelled examples needed to say so.")


class VolumeTrigger(Section):
    """Much has come since the last run."""

    enabled: bool = Field(True, description="Whether the number of new examples alone starts a run.")
    new_examples: Positive = Field(20_000, description="This many new train examples start a run, drift or not.")


class ScheduleTrigger(Section):
    """The clock."""

    enabled: bool = Field(False, description="Whether the clock starts runs.")
    cron: Annotated[str, AfterValidator(checked)] = Field(
        "0 3 * * sun",
        description="Minute, hour, day of month, month, day of week; UTC. Days are names: mon, tue, ... sun.",
    )


class BootstrapTrigger(Section):
    """The first version, while there is no champion."""

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
        24, description="Most runs in any 24 hours; operators' count, but are never held back."
    )
    failure_backoff: Duration = written("5m", "Wait after a failed run; doubled for each further failure, at most 6h.")


class TrainingPolicy(Section):
    """How a challenger is fine-tuned from the champion."""

    lora_rank: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Rank of the LoRA matrices.")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA scale: alpha / rank.")
    lora_dropout: Share = written("5%", "Dropout before the LoRA matrices.")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Peak of the schedule: linear warm-up, linear decay.")
    head_learning_rate: float | None = Field(None, description="For the classification head; none: the same.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Weight decay of AdamW.")
    warmup_share: Share = written("10%", "Share of the steps with a rising learning rate.")
    batch_size: Positive = Field(32, description="Examples a step.")
    epochs: Positive = Field(3, description="Passes over new and replayed examples.")
    max_examples: Positive = Field(20_000, description="Newest train examples used; older new ones are left to replay.")
    replay_share: Annotated[Share, Field(lt=1)] = written(
        "50%", "Replayed past examples, as a share of all that is trained on; below 100%."
    )
    max_validation: Positive = Field(1000, description="Newest validation examples scored after each epoch.")
    patience: Positive = Field(2, description="Epochs without a better validation accuracy before training stops.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device is fast at it.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one.")
    threads: Positive = Field(1, description="torch threads; more than the free cores is slower, not faster.")
    time_limit: PositiveDuration = written("2h", "A run that takes longer is stopped and has failed.")
    stall_limit: PositiveDuration = written(
        "5m", "A worker that makes no progress for so long is stopped and has failed."
    )
    seed: Count = Field(7, description="Seed of everything random in a run.")


class ExportPolicy(Section):
    """What is served of it."""

    precision: Literal["fp32", "int8"] = Field(
        "fp32",
        description="int8: the base in 8 bits, less than half the time and memory, where the two limits below allow it; "
        "else fp32.",
    )
    min_agreement: Share = written(
        "90%", "int8: least share of holdout examples answered as torch does in fp32; below it fp32 is served."
    )
    max_accuracy_drop: Share = written(
        "1%", "int8: accuracy points on the holdout below torch in fp32; beyond it fp32 is served."
    )


class EvidenceGate(Section):
    """Enough holdout examples to judge by."""

    min_examples: Positive = Field(200, description="Recent holdout examples; with fewer the verdict is inconclusive.")
    min_per_class: Count = Field(
        5, description="Holdout examples of each label that the version can answer; with fewer it is inconclusive."
    )


class FloorGate(Section):
    """What no version may fall below."""

    accuracy: Share = written("50%", "Least accuracy on the whole holdout.")
    macro_f1: Share = written("40%", "Least macro F1 on the whole holdout.")
    anchor_accuracy: Share = written("0%", "Least accuracy on task.anchor; above 0% it must be there.")


class NonInferiorityGate(Section):
    """Against the champion, both scored now on the same holdout examples."""

    metric: Literal["accuracy", "macro_f1"] = Field("macro_f1", description="What is compared with the champion's.")
    recent_margin: Share = written("0%", "How far below the champion on recent examples still passes (points).")
    past_margin: Share = written(
        "3%", "How far below the champion on past examples still passes: the forgetting that is allowed."
    )


class PerClassGate(Section):
    """No label is given up for the sake of the others."""

    min_recall: Share = written("10%", "Least recall of each label with enough support.")
    min_support: Positive = Field(20, description="Labels with fewer holdout examples are not judged alone.")


class ParityGate(Section):
    """What is served answers as what was trained."""

    max_abs_diff: float = Field(1e-3, gt=0, description="Largest logit difference between torch and onnxruntime.")
    min_agreement: Share = written("99.5%", "Least share of equal answers.")


class LatencyGate(Section):
    """What is served answers in time."""

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

    @field_validator("max_holdout")
    @classmethod
    def _enough_for_the_evidence(cls, most: int, info: ValidationInfo) -> int:
        needed = info.data["evidence"].min_examples if "evidence" in info.data else most
        if most < needed:
            raise ValueError(f"{most} is less than evidence.min_examples, {needed}: no verdict could ever be reached")
        return most


class Rollout(Section):
    """What follows when all gates passed, and when servers refuse what was promoted."""

    approval: Literal["automatic", "operator"] = Field(
        "automatic",
        description="Promote at once, or wait for an operator's `relearnd promote N`.",
    )
    on_refusal: Literal["hold", "roll_back"] = Field(
        "hold",
        description="While servers refuse the champion no trigger starts a run; roll_back: when all of them do, "
        "the previous version is the champion again.",
    )


class Policy(Section):
    version: Literal[1] = Field(1, description="Version of this format.")
    records: RecordsPolicy = RecordsPolicy()
    drift: DriftPolicy = DriftPolicy()
    triggers: Triggers = Triggers()
    training: TrainingPolicy = TrainingPolicy()
    export: ExportPolicy = ExportPolicy()
    gates: Gates = Gates()
    rollout: Rollout = Rollout()

    @field_validator("triggers")
    @classmethod
    def _enough_to_score(cls, triggers: Triggers, info: ValidationInfo) -> Triggers:
        needed = triggers.performance.min_examples
        window = info.data["drift"].current_examples if "drift" in info.data else needed
        if triggers.performance.enabled and needed > window:
            raise ValueError(
                f"performance.min_examples, {needed}, is more than drift.current_examples, {window}, "
                "which is what the champion is scored on: it could never fire"
            )
        return triggers

    @property
    def hash(self) -> str:
        """sha256 over the resolved values: two files that mean the same have the same hash."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
