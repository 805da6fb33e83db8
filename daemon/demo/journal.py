"""Everything that happened in the demo, as seen from outside: answers, records produced, the learner's own words.

The stream's thread and the watch's thread write; the view and the report read. One lock.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

from daemon.core.states import Action
from daemon.demo.readings import Decided, Status
from daemon.demo.rounds import Round, RoundTracker, Scored, Windows
from daemon.demo.scores import Prequential, percentile
from daemon.demo.story import Asked, Event, Kind, Leg, Picture, Point, Story
from daemon.demo.traffic import Reply
from daemon.demo.tweets import Tweet

RECENT_REPLIES = 400


class Journal:
    """`clock` gives Unix seconds; `started` is the moment from which the demo counts."""

    def __init__(self, windows: Windows, *, started: float, clock: Callable[[], float]) -> None:
        self._windows = windows
        self._started = started
        self._clock = clock
        self._lock = threading.Lock()
        self._prequential = Prequential(windows.prequential)
        self._points: list[Point] = []
        self._asked: list[Asked] = []
        self._errors: list[str] = []
        self._produced_at: list[float] = []
        self._swaps: list[float] = []
        self._events: list[Event] = []
        self._status: Status | None = None
        self._version: int | None = None
        self._last_decision = 0
        self._trackers: list[RoundTracker] = []
        self._legs_began: list[int] = []
        self._drift_told = False

    # --- the stream's thread ------------------------------------------------------------------------------------------

    def source_begins(self, source: str, *, bootstrap: bool) -> None:
        with self._lock:
            self._trackers.append(RoundTracker(source, self._windows, began=self._now(), bootstrap=bootstrap))
            self._legs_began.append(len(self._produced_at))
            self._drift_told = False
            self._tell(Kind.SOURCE, f"the stream turns to {source}")

    def answered(self, reply: Reply, tweet: Tweet, *, labelled: bool) -> None:
        """A request has ended; with `labelled` it counts for accuracy."""
        with self._lock:
            at = self._now()
            self._asked.append(Asked(at, reply.ms, reply.version))
            if reply.version is None:
                self._errors.append(reply.error or "no version named")
                return
            self._served(reply.version, at)
            if labelled:
                correct = reply.label == tweet.label
                answer = Scored(at, len(self._produced_at) + 1, tweet.source, reply.version, correct)
                self._points.append(Point(answer, self._prequential.add(correct)))
                self._trackers[-1].scored(answer)

    def produced(self) -> int:
        """One more example is in the topic; returns how many that makes."""
        with self._lock:
            self._produced_at.append(self._now())
            return len(self._produced_at)

    def source_ends(self) -> Round:
        """What came of the source."""
        with self._lock:
            ended = self._trackers[-1].round()
            if not ended.missing and not self._trackers[-1].bootstrap:
                self._tell(Kind.ROUND, _round_sentence(ended))
            return ended

    # --- the watch's thread -------------------------------------------------------------------------------------------

    def observed(self, status: Status, decisions: Sequence[Decided]) -> None:
        """What the learner says now; `decisions` the oldest first, those seen before may be among them."""
        with self._lock:
            self._status = status
            for decision in decisions:
                if decision.number > self._last_decision:
                    self._last_decision = decision.number
                    self._decided(decision)

    # --- readers ------------------------------------------------------------------------------------------------------

    @property
    def source_done(self) -> bool:
        """Whether the present source has all that its round needs."""
        with self._lock:
            return self._trackers[-1].done

    @property
    def settled(self) -> int:
        """Records the learner has put away: examples and dead letters, as last seen."""
        with self._lock:
            return self._status.stored + self._status.dead_letters if self._status else 0

    def picture(self) -> Picture:
        with self._lock:
            recent = [asked.ms for asked in self._asked[-RECENT_REPLIES:]]
            return Picture(
                seconds=self._now(),
                source=self._trackers[-1].source if self._trackers else "",
                produced=len(self._produced_at),
                status=self._status,
                points=list(self._points),
                version=self._version,
                sent=len(self._asked),
                failed=len(self._errors),
                p50_ms=percentile(recent, 0.50),
                p99_ms=percentile(recent, 0.99),
                rounds=self._rounds(),
                events=list(self._events),
            )

    def story(self) -> Story:
        with self._lock:
            ends = [*self._legs_began[1:], len(self._produced_at)]
            spans = zip(self._trackers, self._legs_began, ends, strict=True)
            return Story(
                seconds=self._now(),
                legs=[Leg(tracker.source, first, last) for tracker, first, last in spans],
                points=list(self._points),
                asked=list(self._asked),
                errors=list(self._errors),
                swaps=list(self._swaps),
                events=list(self._events),
                rounds=self._rounds(),
                produced_at=list(self._produced_at),
            )

    # --- inside the lock ----------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._clock() - self._started

    def _rounds(self) -> list[Round]:
        return [tracker.round() for tracker in self._trackers if not tracker.bootstrap]

    def _tell(self, kind: Kind, text: str, at: float | None = None) -> None:
        when = self._now() if at is None else at
        self._events.append(Event(when, bisect_right(self._produced_at, when), kind, text))

    def _served(self, version: int, at: float) -> None:
        self._trackers[-1].answered(version, at)
        if version == self._version:
            return
        if self._version is None:
            self._tell(Kind.SWAP, f"the server answers, with version {version}", at)
        else:
            self._swaps.append(at)
            self._tell(Kind.SWAP, f"the server swapped version {self._version} for {version}", at)
        self._version = version

    def _decided(self, decision: Decided) -> None:
        if self._trackers:
            self._trackers[-1].decided(decision)
        if decision.drift and decision.drift.drifted and not self._drift_told and self._is_of_this_source(decision):
            self._drift_told = True
            self._tell(Kind.DRIFT, f"drift noticed: {_drifted_sentence(decision)}", decision.at)
        if decision.action == Action.TRAIN:
            self._tell(Kind.RUN, f"run started by {', '.join(decision.triggers)}", decision.at)
        elif decision.judged and decision.action == Action.PROMOTE:
            self._tell(Kind.PROMOTION, f"version {decision.version} promoted: all gates passed", decision.at)
        elif decision.judged:
            why = "; ".join(decision.judged.unmet) or decision.action
            self._tell(Kind.REJECTION, f"version {decision.version} not promoted: {why}", decision.at)

    def _is_of_this_source(self, decision: Decided) -> bool:
        return bool(self._trackers) and not self._trackers[-1].bootstrap and decision.at >= self._trackers[-1].began


def _drifted_sentence(decision: Decided) -> str:
    scores = decision.drift.scores if decision.drift else {}
    told = [
        f"{name} {_number(score.score)} of {_number(score.threshold)}"
        for name, score in scores.items()
        if score.drifted
    ]
    return ", ".join(told)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _round_sentence(result: Round) -> str:
    before, after = result.accuracy_first_window, result.accuracy_after
    told = f"accuracy {before:.0%} -> {after:.0%}" if before is not None and after is not None else "accuracy unknown"
    return (
        f"round on {result.source} done: {told}, version {result.challenger}, {result.seconds_drift_to_serving:.0f} s"
    )
