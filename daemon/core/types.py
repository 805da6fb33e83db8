"""The nouns. Frozen, built valid at the edge, never checked again inside.

All times are aware and UTC. `seq` is the store's own counter: the order in which examples were stored, across partitions, from 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from daemon.core.states import Action, Outcome, RunState, TriggerKind

# --- drift --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DriftTest:
    """How one column is compared between two windows. A distance alarms at or above `threshold`, a p-value below it."""

    column: str
    method: str
    threshold: float
    is_p_value: bool

    def measured(self, score: float) -> "ColumnDrift":
        """What a score means. One that is not finite is unknown, never drift."""
        if not math.isfinite(score):
            return self.unknown(f"the score is {score}: the column is constant, empty or too small for {self.method}")
        drifted = score < self.threshold if self.is_p_value else score >= self.threshold
        return ColumnDrift(self.column, self.method, score, self.threshold, drifted)

    def unknown(self, error: str) -> "ColumnDrift":
        return ColumnDrift(self.column, self.method, None, self.threshold, drifted=False, error=error)


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """One column's score against its threshold. `score` is None when it could not be computed; that is never drift."""

    column: str
    method: str
    score: float | None
    threshold: float
    drifted: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The current window against the reference window. `drifted` is the policy's word over all columns."""

    at: datetime
    reference_examples: int
    current_examples: int
    current_from_seq: int
    current_to_seq: int
    columns: Sequence[ColumnDrift]
    drifted: bool
    detail: str

    @property
    def conclusive(self) -> bool:
        return any(column.score is not None for column in self.columns)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One row of a drift window: an example and what the champion says of it (empty and NaN without a champion)."""

    text: str
    label: str
    prediction: str
    confidence: float


# --- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """A version's answer for one text. `probabilities` is in the order of the version's labels; `truncated`: there was more of the
    text than the version reads."""

    label: str
    confidence: float
    probabilities: Sequence[float]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ClassScore:
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class SliceScore:
    """Scores on a named subgroup of the holdout. Metrics are shares in [0, 1], NaN when there was nothing to score."""

    examples: int
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """How an ONNX artefact did on the holdout. `eval_set` is the sha256 of the rows: two reports compare only when equal."""

    eval_set: str
    examples: int
    accuracy: float
    macro_f1: float
    per_class: Mapping[str, ClassScore]
    slices: Mapping[str, SliceScore]  # "recent", "past" and "source:<name>"
    latency_ms_p50: float
    latency_ms_p99: float


@dataclass(frozen=True, slots=True)
class ParityReport:
    """torch against onnxruntime on the same texts: the largest logit difference and the share of equal answers."""

    texts: int
    max_abs_diff: float
    agreement: float


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """int8 against torch in fp32 on the holdout: the share of equal answers, and both accuracies. NaN without examples."""

    examples: int
    agreement: float
    accuracy: float
    fp32_accuracy: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training did. Seconds are wall clock; `device` is "cpu" or "cuda:N"."""

    examples: int
    replayed: int
    steps: int
    epochs: int
    seconds: float
    device: str
    precision: str
    final_loss: float
    validation_accuracy: float
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a version was made of; enough to make it again."""

    run_id: str
    parent: int | None
    triggers: Sequence[str]
    policy_hash: str
    seed: int
    data_sha256: str
    data_cut: int  # the greatest seq the run could see
    examples: int
    newest_occurred_at: datetime | None
    code_version: str
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """An immutable artefact with a number. `digest` names the folder of its files, `base` the folder of the graph it runs on."""

    model: str
    number: int
    digest: str
    base: str
    labels: Sequence[str]
    max_tokens: int
    created_at: datetime
    lineage: Lineage
    evaluation: EvalReport
    parity: ParityReport
    golden_sha256: str
    precision: str = "fp32"  # of the graph


@dataclass(frozen=True, slots=True)
class Aliases:
    """Movable names. `generation` grows by one with each move: a move is a compare-and-set on it."""

    generation: int = 0
    champion: int | None = None
    challenger: int | None = None
    previous: int | None = None
    moved_at: datetime | None = None
    reason: str = ""
    canary: int | None = None
    canary_share: float = 0.0  # of the requests that name no version, in [0, 1]; the canary answers those
    shadow: int | None = None  # answers when there is time, and is not heard

    @property
    def named(self) -> frozenset[int]:
        """Every version with an alias."""
        numbers = (self.champion, self.challenger, self.previous, self.canary, self.shadow)
        return frozenset(number for number in numbers if number is not None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that a server has given up on: it could not be loaded, or did not answer as when it was judged."""

    version: int
    reason: str


REPORT_EVERY = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What one server says of itself, in the registry. It is renewed every REPORT_EVERY, and at once when something changes."""

    server: str  # unique; another one after each start
    model: str
    at: datetime
    served: int | None
    generation: int  # of the aliases it goes by
    refused: Sequence[Refusal] = ()

    def silent(self, now: datetime) -> bool:
        """Not renewed for so long that the server must be taken for gone."""
        return now - self.at > 4 * REPORT_EVERY

    def refusal_of(self, version: int | None) -> Refusal | None:
        return next((refusal for refusal in self.refused if refusal.version == version), None)


# --- runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DataManifest:
    """The frozen snapshot in the run folder: file name to sha256 and rows, and which seqs it was cut from."""

    files: Mapping[str, str]
    rows: Mapping[str, int]
    sha256: str  # over the files' digests, sorted by name
    data_cut: int
    newest_occurred_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What the worker is asked to do; `run.json` of the run folder. The resolved policy lies beside it as `policy.json`."""

    run_id: str
    model: str
    task: str
    created_at: datetime
    base: str  # a packaged model ("package:NAME"), a folder, or a name transformers can load
    registry: str  # path; the worker reads the parent and a base exported earlier from it, and writes nothing there
    labels: Sequence[str]
    max_tokens: int
    parent: int | None  # the champion to warm-start from and to be compared with
    seed: int
    policy_hash: str
    triggers: Sequence[str]
    data: DataManifest
    anchor_sha256: str = ""  # of anchor.jsonl beside the data; empty: there is none


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of `progress.jsonl`, also the worker's heartbeat. `done` and `total` count `unit`s of this stage."""

    at: datetime
    stage: str  # "load", "train", "export", "parity", "evaluate"
    done: int
    total: int
    unit: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What the worker made; `result.json` of the run folder. Its files lie in `artefact/` and, when the graph is new, `base/`.

    `base_digest` names a base in the registry; it is empty when the base is new, for the registry alone gives digests.
    """

    run_id: str
    labels: Sequence[str]
    base_digest: str
    base_is_new: bool
    training: TrainingReport
    parity: ParityReport
    challenger: EvalReport
    champion: EvalReport | None  # the parent's, scored now on the same rows
    packages: Mapping[str, str]
    precision: str = "fp32"  # of the base it is served on
    quantization: QuantizationReport | None = None  # where int8 was asked for, whether it is served or not


@dataclass(frozen=True, slots=True)
class Run:
    """One training attempt as the store remembers it."""

    id: str
    state: RunState
    created_at: datetime
    triggers: Sequence[str]
    parent: int | None
    data_cut: int
    finished_at: datetime | None = None
    version: int | None = None
    outcome: Outcome | None = None
    detail: str = ""


# --- decisions ----------------------------------------------------------------------------------------------------

# Who decides beside "policy" and "operator".
DISK = "disk"  # there is no room for a run
STOP = "stop"  # the learner ends


@dataclass(frozen=True, slots=True)
class Trigger:
    kind: TriggerKind
    reason: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """One condition with its reason."""

    gate: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All gates together: FAIL if one failed, else INCONCLUSIVE if one was, else PASS."""

    outcome: Outcome
    gates: Sequence[GateResult]

    @property
    def reasons(self) -> list[str]:
        return [f"{gate.gate}: {gate.outcome}: {gate.reason}" for gate in self.gates]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided and why; stored before it is acted on. `evidence` is what it was decided from, as plain JSON values."""

    at: datetime
    action: Action
    reasons: Sequence[str]
    policy_hash: str
    by: str = "policy"
    triggers: Sequence[Trigger] = ()
    run_id: str | None = None
    version: int | None = None
    verdict: Verdict | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision with its number, and when it was carried out (None: not yet, or there was nothing to do)."""

    number: int
    decision: Decision
    acted_at: datetime | None
