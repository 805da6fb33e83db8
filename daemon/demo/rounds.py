"""What happened to one source of the stream: drift seen, runs and their verdicts, the swap, accuracy before and after. Pure.

Seconds are counted from the start of the demo, examples by their place in the stream, from 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from daemon.core.states import Action
from daemon.demo.readings import Decided, Judged, Score
from daemon.demo.scores import share


@dataclass(frozen=True, slots=True)
class Windows:
    """Sizes in answers: the old champion on a new source, the new version on it, the running accuracy."""

    first: int
    after: int
    prequential: int


@dataclass(frozen=True, slots=True)
class Scored:
    """A live answer to an example that was produced only afterwards, so that no version can have been trained on it."""

    at: float
    example: int
    source: str
    version: int
    correct: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run: the decision that started it and, once there, the one that says what became of its challenger."""

    started: Decided
    ended: Decided | None = None

    @property
    def saw_drift(self) -> bool:
        return self.started.drift is not None and self.started.drift.drifted

    @property
    def promoted(self) -> bool:
        return self.ended is not None and self.ended.action == Action.PROMOTE


@dataclass(frozen=True, slots=True)
class Round:
    """One source as far as it came: None for what did not happen. Accuracies are shares, of live answers."""

    source: str
    attempts: int  # runs started
    drift_at_example: int | None
    drift: Mapping[str, Score]
    accuracy_first_window: float | None
    accuracy_after: float | None
    champion: int | None
    challenger: int | None
    judged: Judged | None
    seconds_drift_to_serving: float | None
    missing: str | None  # why it is no full round, as a sentence; None when it is one


class RoundTracker:
    """Follows one source. A bootstrap is followed in the same way, but needs no drift."""

    def __init__(self, source: str, windows: Windows, *, began: float, bootstrap: bool = False) -> None:
        self.source = source
        self.began = began
        self.bootstrap = bootstrap
        self.attempts: list[Attempt] = []
        self._windows = windows
        self._scored: list[Scored] = []
        self._first_answer: dict[int, float] = {}  # by version, in seconds

    def decided(self, decision: Decided) -> None:
        """Decisions of the learner, in order of number. One taken before this source began is not about it."""
        if decision.at < self.began:
            return
        if decision.action == Action.TRAIN:
            self.attempts.append(Attempt(decision))
        elif decision.judged and self.attempts and self.attempts[-1].ended is None:
            self.attempts[-1] = replace(self.attempts[-1], ended=decision)

    def answered(self, version: int, at: float) -> None:
        """Any answer of the server."""
        self._first_answer.setdefault(version, at)

    def scored(self, answer: Scored) -> None:
        """An answer whose label is known."""
        self._scored.append(answer)

    @property
    def noticed(self) -> Attempt | None:
        """The first run whose decision saw drift; for a bootstrap, the first run."""
        return next((attempt for attempt in self.attempts if self.bootstrap or attempt.saw_drift), None)

    @property
    def new_version(self) -> int | None:
        """The version promoted after drift had been noticed."""
        if self.noticed is None:
            return None
        since = self.attempts[self.attempts.index(self.noticed) :]
        return next((attempt.ended.version for attempt in since if attempt.ended and attempt.promoted), None)

    @property
    def swapped_at(self) -> float | None:
        """When the first live answer named the new version."""
        return None if self.new_version is None else self._first_answer.get(self.new_version)

    @property
    def done(self) -> bool:
        return self.swapped_at is not None and len(self._after()) >= self._windows.after

    def round(self) -> Round:
        noticed = self.noticed
        last = _last_ended(self.attempts)
        drift = noticed.started.drift if noticed else None
        swapped_at = self.swapped_at
        return Round(
            source=self.source,
            attempts=len(self.attempts),
            drift_at_example=drift.up_to if drift else None,
            drift=drift.scores if drift else {},
            accuracy_first_window=share(self._before()[: self._windows.first]),
            accuracy_after=share(self._after()[: self._windows.after]),
            champion=self.attempts[-1].started.champion if self.attempts else None,
            challenger=last.version if last else None,
            judged=last.judged if last else None,
            seconds_drift_to_serving=swapped_at - noticed.started.at if noticed and swapped_at is not None else None,
            missing=None if self.done else f"{self.source}: {self._what_is_missing()}",
        )

    def _before(self) -> list[bool]:
        new = self.new_version
        return [answer.correct for answer in self._scored if answer.version != new]

    def _after(self) -> list[bool]:
        new = self.new_version
        return [answer.correct for answer in self._scored if answer.version == new]

    def _what_is_missing(self) -> str:
        if not self.attempts:
            return "no run was started"
        if self.noticed is None:
            kinds = ", ".join(self.attempts[-1].started.triggers) or "nothing named"
            return f"the run was started by {kinds}, and the decision to start it had seen no drift"
        if self.new_version is None:
            return _no_promotion(self.attempts)
        if self.swapped_at is None:
            return f"version {self.new_version} was promoted, but no live answer named it"
        return (
            f"version {self.new_version} gave {len(self._after())} scored answers of the {self._windows.after} "
            "needed to measure it"
        )


def _no_promotion(attempts: Sequence[Attempt]) -> str:
    runs = "a run was" if len(attempts) == 1 else f"{len(attempts)} runs were"
    last = _last_ended(attempts)
    if last is None or last.judged is None:
        return f"{runs} started, none reached a verdict"
    return f"{runs} started, none promoted; the last verdict: {'; '.join(last.judged.unmet) or last.action}"


def _last_ended(attempts: Sequence[Attempt]) -> Decided | None:
    return next((attempt.ended for attempt in reversed(attempts) if attempt.ended), None)
