"""What is compared with what. Pure: rows of a window, the champion's accuracy on it, and when columns add up to drift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.core.facts import Performance
from daemon.core.stream import StoredExample
from daemon.core.types import ColumnDrift, ModelVersion, WindowRow
from daemon.policy.schema import DriftPolicy

Answer = tuple[str, float]  # the champion's label and its confidence


@dataclass(frozen=True, slots=True)
class Window:
    """The newest examples between two seqs but for `late` ones, which the policy leaves out.

    The reference window ends with what the champion was trained up to; the current one holds the newest since.
    """

    examples: Sequence[StoredExample]
    from_seq: int
    to_seq: int
    late: int

    @property
    def seqs(self) -> tuple[int, ...]:
        return tuple(example.seq for example in self.examples)


def window_rows(examples: Sequence[StoredExample], answers: Mapping[int, Answer]) -> list[WindowRow]:
    """One row per example, in order; `answers` by seq."""
    return [WindowRow(example.text, example.label, *answers[example.seq]) for example in examples]


def performance(current: Sequence[WindowRow], champion: ModelVersion) -> Performance | None:
    """The champion on labelled examples newer than all it was trained on, beside what it reached when it was judged."""
    if not current:
        return None
    right = sum(row.prediction == row.label for row in current)
    recent = champion.evaluation.slices.get("recent")
    baseline = recent.accuracy if recent else champion.evaluation.accuracy
    return Performance(len(current), right / len(current), baseline)


def drift_verdict(columns: Sequence[ColumnDrift], policy: DriftPolicy) -> tuple[bool, str]:
    """Whether enough columns have drifted, and which; a column without a score never counts."""
    drifted = [column.column for column in columns if column.drifted and column.score is not None]
    unknown = [column.column for column in columns if column.score is None]
    needed = policy.min_drifted_columns
    detail = f"{len(drifted)} of {len(columns)} columns drifted, {needed} needed"
    named = f" ({', '.join(drifted)})" if drifted else ""
    return len(drifted) >= needed, detail + named + (f"; unknown: {', '.join(unknown)}" if unknown else "")
