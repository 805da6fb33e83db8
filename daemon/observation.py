"""What one look at the stream sees: the windows, the champion's answers on them, drift, and how it is getting on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import structlog

from daemon.core.errors import ArtefactError, DriftError, RelearndError
from daemon.core.facts import Performance
from daemon.core.ports import Clock, DriftDetector, Scorer, Store
from daemon.core.stream import StoreCounts, StoredExample
from daemon.core.types import DriftReport, ModelVersion, WindowRow
from daemon.policy.schema import Policy
from daemon.policy.windows import Window, drift_verdict, performance, window_rows

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Who is told. Must not raise."""

    def enter(self, stage: str, *, run_id: str | None = None, triggers: tuple[str, ...] = ()) -> None: ...
    def observed(self, drift: DriftReport | None, performance: Performance | None, late_examples: int) -> None: ...
    def drift_failed(self, error: RelearndError) -> None: ...


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at the stream saw."""

    counts: StoreCounts
    champion: ModelVersion | None
    drift: DriftReport | None
    drift_in_a_row: int
    drifted_from: int  # seq at which the window began in which the first of these saw drift
    performance: Performance | None
    reference: tuple[int, ...] = ()  # seqs of that window
    current: tuple[int, ...] = ()
    late_examples: int = 0  # left out of both windows
    max_lateness: timedelta | None = None  # beyond which they are


class Observer:
    """Used by one thread."""

    def __init__(self, store: Store, scorer: Scorer, detector: DriftDetector, clock: Clock, listener: Listener) -> None:
        self._store = store
        self._eye = _Eye(scorer)
        self._detector = detector
        self._clock = clock
        self._listener = listener
        self._last: Observation | None = None

    def observe(self, champion: ModelVersion | None, policy: Policy) -> Observation:
        counts = self._store.counts()
        if champion is None:
            return Observation(counts, None, None, 0, 0, None)
        cut, lateness = champion.lineage.data_cut, policy.drift.max_lateness
        last = self._last if self._last and self._last.champion == champion else None
        if last and (last.counts.last_seq, last.max_lateness) == (counts.last_seq, lateness):
            return last  # nothing came: the same rows must not confirm themselves
        self._listener.enter("observing")
        reference = self._window(0, cut, policy.drift.reference_examples, lateness)
        current = self._window(cut, counts.last_seq, policy.drift.current_examples, lateness)
        # Where nothing came but what is late, these are the same rows, too.
        same_reference = last and (last.max_lateness == lateness or last.reference == reference.seqs)
        again = last if last and same_reference and last.current == current.seqs else None
        seen = again or self._compare(reference, current, champion, counts, policy)
        late = reference.late + current.late
        self._listener.observed(seen.drift, seen.performance, late)
        self._last = replace(seen, counts=counts, late_examples=late, max_lateness=lateness)
        return self._last

    def _window(self, after: int, up_to: int, limit: int, lateness: timedelta | None) -> Window:
        examples = self._store.window(after=after, up_to=up_to, limit=limit, max_lateness=lateness)
        first = examples[0].seq if len(examples) == limit else after + 1
        late = self._store.late_examples(after=first - 1, up_to=up_to, max_lateness=lateness) if lateness else 0
        return Window(examples, first, up_to, late)

    def _compare(
        self, reference: Window, current: Window, champion: ModelVersion, counts: StoreCounts, policy: Policy
    ) -> Observation:
        seen, drift = None, None
        try:
            before, now = self._eye.see(champion, reference.examples, current.examples)
            seen = performance(now, champion)
            drift = self._detect(before, now, current, policy)
        except (DriftError, ArtefactError) as error:  # unknown, which is not "no drift"
            log.warning(f"drift could not be measured: {error}", action="drift_failed")
            self._listener.drift_failed(error)
        in_a_row, drifted_from = self._count_in_a_row(champion, drift)
        return Observation(counts, champion, drift, in_a_row, drifted_from, seen, reference.seqs, current.seqs)

    def _detect(
        self, before: list[WindowRow], now: list[WindowRow], current: Window, policy: Policy
    ) -> DriftReport | None:
        """None: not enough examples yet, which is not "no drift"."""
        if min(len(before), len(now)) < policy.drift.min_examples:
            return None
        columns = self._detector.detect(before, now, policy.drift.tests)
        drifted, detail = drift_verdict(columns, policy.drift)
        return DriftReport(
            at=self._clock(),
            reference_examples=len(before),
            current_examples=len(now),
            current_from_seq=current.from_seq,
            current_to_seq=current.to_seq,
            columns=columns,
            drifted=drifted,
            detail=detail,
        )

    def _count_in_a_row(self, champion: ModelVersion, drift: DriftReport | None) -> tuple[int, int]:
        """How many observations have said drift, and from which seq; an unknown neither adds nor clears.

        Durable, so that a restart does not forget a confirmation.
        """
        before = self._store.get("drift_in_a_row") or {}
        known = before.get("champion") == champion.number
        count, start = (int(before["count"]), int(before["from_seq"])) if known else (0, 0)
        if drift is not None and drift.conclusive:
            start = start if count else drift.current_from_seq
            count = count + 1 if drift.drifted else 0
        now = {"champion": champion.number, "count": count, "from_seq": start}
        self._store.put("drift_in_a_row", now)
        return count, start


class _Eye:
    """Windows with the champion's answers, each example scored once for as long as it stays in a window."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._champion: int | None = None
        self._answers: dict[int, tuple[str, float]] = {}

    def see(
        self, champion: ModelVersion, reference: Sequence[StoredExample], current: Sequence[StoredExample]
    ) -> tuple[list[WindowRow], list[WindowRow]]:
        if self._champion != champion.number:
            self._champion, self._answers = champion.number, {}
        examples = [*reference, *current]
        fresh = [example for example in examples if example.seq not in self._answers]
        predictions = self._scorer.predict(champion, [example.text for example in fresh])
        self._answers.update(
            (example.seq, (prediction.label, prediction.confidence))
            for example, prediction in zip(fresh, predictions, strict=True)
        )
        self._answers = {example.seq: self._answers[example.seq] for example in examples}
        return window_rows(reference, self._answers), window_rows(current, self._answers)
