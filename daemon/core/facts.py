"""What the retraining policy is told: one frozen picture of the stream, the champion and the runs, taken at `now`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from daemon.core.types import DriftReport


@dataclass(frozen=True, slots=True)
class Performance:
    """The champion on the newest labelled examples it was not trained on, against what it reached when it was promoted."""

    examples: int
    accuracy: float
    baseline: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts are of examples. `new_examples` came after the data cut of the newest run that finished, whatever its verdict."""

    now: datetime
    examples: int
    new_examples: int
    champion: int | None
    last_run_finished_at: datetime | None
    failed_runs_in_a_row: int
    runs_last_day: int
    drift: DriftReport | None
    drift_in_a_row: int  # how many observations running have said "drifted", this one included
    drifted_examples: int  # train examples since the start of the window in which the first of these saw drift
    performance: Performance | None
    schedule_due: bool
    operator_request: str | None  # who asked and why
    paused: bool
    previous: int | None = None  # the version to roll back to
    servers: int = 0  # that were heard of lately
    refusals: Mapping[str, str] = field(default_factory=dict)  # of the champion: why, by server
    late_examples: int = 0  # left out of what drift and performance were seen in

    @property
    def refused_everywhere(self) -> bool:
        return 0 < self.servers <= len(self.refusals)
