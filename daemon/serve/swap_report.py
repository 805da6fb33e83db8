"""What a swap was worth: proof that the endpoint answers as the judge saw it, what requests met meanwhile, what memory it took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from daemon.core.artefact import Golden
from daemon.core.types import ModelVersion
from daemon.serve.router import Slot
from daemon.serve.traffic import Fate, Span, Tally, Traffic

REMEMBERED = 100  # reports
BEFORE = 10.0  # seconds before the swap that it is compared with


class SwapOutcome(StrEnum):
    WATCHED = "watched"  # it answers, and requests are still watched
    SWITCHED = "switched"
    RETURNED = "returned"  # it was found wanting; the version before answers again
    FAILED = "failed"  # it could not be loaded; nothing was switched


@dataclass(frozen=True, slots=True)
class GoldenProof:
    """Golden texts asked at the endpoint, after the switch. `sha256` is of the judge's record that answers were held against.

    `equal` is None when there was no room to ask, which speaks against no version: it is asked again.
    """

    sha256: str
    texts: int
    equal: bool | None
    largest_difference: float | None  # between probabilities; None when there was no answer
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Switch:
    """`seconds` from noticing the champion to answering with it; `ms` the switch itself, in which requests change over."""

    at: datetime
    before: int | None
    seconds: float
    ms: float


@dataclass(frozen=True, slots=True)
class SwapReport:
    """`seconds` and `switch_ms` as in Switch, None when there was no switch; `load_ms` to verify, open, check golden outputs and
    warm up: 0 when that was done.

    `requests` are all from the beginning of the load until the watch was over, ours with golden texts among them; `failed` of them
    failed by a fault of ours, `late` had no answer within the server's limit. None: not counted yet. `p99_ms_*` are None too where
    there were no requests. `rss_*` are bytes of the whole process.
    """

    at: datetime
    before: int | None
    after: int
    outcome: SwapOutcome
    load_ms: float
    rss_before: int
    p99_ms_before: float | None
    seconds: float | None = None
    switch_ms: float | None = None
    golden: GoldenProof | None = None
    requests: int | None = None
    failed: int | None = None
    late: int | None = None
    p99_ms_during: float | None = None
    p99_ms_after: float | None = None
    rss_after: int | None = None
    detail: str = ""  # why it was returned from, or could not be loaded

    @property
    def facts(self) -> Mapping[str, object]:
        """For a log line: what is known."""
        facts = {
            "before": self.before,
            "version": self.after,
            "seconds": self.seconds,
            "load_ms": self.load_ms,
            "switch_ms": self.switch_ms,
            "golden_equal": self.golden.equal if self.golden else None,
            "requests": self.requests,
            "failed": self.failed,
            "late": self.late,
            "p99_ms_before": self.p99_ms_before,
            "p99_ms_during": self.p99_ms_during,
            "p99_ms_after": self.p99_ms_after,
            "rss_before": self.rss_before,
            "rss_after": self.rss_after,
        }
        return {
            name: round(fact, 3) if isinstance(fact, float) else fact
            for name, fact in facts.items()
            if fact is not None
        }


Prove = Callable[[ModelVersion, Golden], GoldenProof]  # at the endpoint; never raises


@dataclass(frozen=True, slots=True)
class _Load:
    """What is on the way to being switched to. `started` is a time of the traffic's clock."""

    started: float
    rss: int
    before: Span
    during: Tally


@dataclass(frozen=True, slots=True)
class _Watch:
    """A swap whose requests are still watched. `switched` is a time of the traffic's clock."""

    report: SwapReport
    slot: Slot
    load: _Load
    switched: float
    after: Tally

    @property
    def failed(self) -> int:
        """Requests that failed on it; there were none before it was loaded."""
        version = self.report.after
        return sum(tally.count(Fate.FAILED, version=version) for tally in (self.load.during, self.after))

    @property
    def hangs(self) -> bool:
        """Whether it leaves more requests without an answer than it answers, and that is new. Our own golden texts aside."""
        late, answered = (self.after.count(fate, version=self.report.after) for fate in (Fate.LATE, Fate.ANSWERED))
        golden = self.report.golden.texts if self.report.golden else 0
        return late > max(0, answered - golden) and not self.load.before.late

    def ended(self, *, rss: int, outcome: SwapOutcome, detail: str = "") -> SwapReport:
        whole = (self.load.during, self.after)
        return replace(
            self.report,
            outcome=outcome,
            requests=sum(tally.count() for tally in whole),
            failed=sum(tally.count(Fate.FAILED) for tally in whole),
            late=sum(tally.count(Fate.LATE) for tally in whole),
            p99_ms_after=self.after.p99_ms,
            rss_after=rss,
            detail=detail,
        )


class SwapJudge:
    """Says whether a swap stands, and keeps the reports. Used by the manager's thread; `reports` may be read from any."""

    def __init__(self, prove: Prove, traffic: Traffic, *, watch: float, resident: Callable[[], int]) -> None:
        """`watch`: seconds for which requests on a new version are watched; `resident`: bytes of this process in memory."""
        self._prove = prove
        self._traffic = traffic
        self._watch_for = watch
        self._resident = resident
        self._loads: dict[int, _Load] = {}  # of the champion that is being loaded, or was and is not switched to yet
        self._watch: _Watch | None = None
        self._ended: tuple[SwapReport, ...] = ()

    @property
    def reports(self) -> Sequence[SwapReport]:
        """The newest last."""
        watch = self._watch
        return [*self._ended, watch.report] if watch else self._ended

    @property
    def held(self) -> int | None:
        """The version to return to while a swap is watched."""
        return self._watch.report.before if self._watch else None

    @property
    def watched(self) -> int | None:
        return self._watch.report.after if self._watch else None

    def loading(self, champion: int) -> None:
        """What happens from now on belongs to the swap to this version."""
        self.moved()
        self._loads = {champion: self._begun()}

    def moved(self) -> None:
        """Another version ought to answer: what was loaded for the one before belongs to no swap."""
        for load in self._loads.values():
            self._traffic.close(load.during)
        self._loads = {}

    def _begun(self) -> _Load:
        traffic = self._traffic
        return _Load(traffic.now(), self._resident(), traffic.lately(BEFORE), traffic.tally())

    def not_loaded(self, number: int, *, at: datetime, before: int | None, error: str) -> None:
        """The load that `loading` began has failed, and nothing was switched."""
        load = self._loads.pop(number)
        self._traffic.close(load.during)
        report = SwapReport(
            at=at,
            before=before,
            after=number,
            outcome=SwapOutcome.FAILED,
            load_ms=1000 * (self._traffic.now() - load.started),
            rss_before=load.rss,
            p99_ms_before=load.before.p99_ms,
            requests=load.during.count(),
            failed=load.during.count(Fate.FAILED),
            late=load.during.count(Fate.LATE),
            p99_ms_during=load.during.p99_ms,
            rss_after=self._resident(),
            detail=error,
        )
        self._keep(report)

    def switched(self, switch: Switch, slot: Slot) -> SwapReport:
        """Called right after the switch: asks the endpoint for the proof, and watches from then on."""
        now, version = self._traffic.now(), slot.version
        load = self._loads.pop(version.number, None) or self._begun()
        after = self._traffic.tally()
        self._traffic.close(load.during)
        report = SwapReport(
            at=switch.at,
            before=switch.before,
            after=version.number,
            outcome=SwapOutcome.WATCHED,
            load_ms=1000 * max(0.0, now - load.started),
            rss_before=load.rss,
            p99_ms_before=load.before.p99_ms,
            seconds=switch.seconds,
            switch_ms=switch.ms,
            p99_ms_during=load.during.p99_ms,
        )
        self._watch = _Watch(report, slot, load, now, after)
        self.prove()
        return self._watch.report

    def prove(self) -> None:
        """Ask the golden texts of the swap that is watched, unless they have been answered."""
        watch = self._watch
        if watch and (watch.report.golden is None or watch.report.golden.equal is None):
            assert watch.slot.golden is not None
            golden = self._prove(watch.slot.version, watch.slot.golden)
            self._watch = replace(watch, report=replace(watch.report, golden=golden))

    def wanting(self) -> str | None:
        """Why the watched swap does not stand; None while nothing speaks against it."""
        watch = self._watch
        if watch is None:
            return None
        golden = watch.report.golden
        if golden and golden.equal is False:
            return f"it does not answer its golden texts at the endpoint as when it was judged: {golden.detail}"
        if self.held is None:  # nothing to return to, and some answers are better than none
            return None
        if watch.failed:
            return f"{watch.failed} requests failed on it since the switch"
        if watch.hangs:
            late = watch.after.count(Fate.LATE, version=watch.report.after)
            return f"{late} requests had no answer from it within {self._traffic.patience:g} s, which is most of them"
        return None

    @property
    def over(self) -> bool:
        """Whether a swap has been watched for long enough: proved, and with an end to every request that was begun meanwhile."""
        watch = self._watch
        if watch is None or not (watch.report.golden and watch.report.golden.equal):
            return False
        beyond = self._traffic.now() - watch.switched - self._watch_for
        return beyond >= self._traffic.patience or (beyond >= 0 and not watch.slot.busy)

    def failing(self, version: int) -> str | None:
        """Why a version that is no champion should not be sent requests; None when nothing speaks against it."""
        own, everyone = self._traffic.lately(BEFORE, version=version), self._traffic.lately(BEFORE)
        if own.failed:
            return f"{own.failed} requests failed on it within {BEFORE:g} s"
        others_wait = everyone.late - own.late > everyone.answered - own.answered
        if own.late > own.answered and not others_wait:  # else the server has too much to do, whoever answers
            limit = self._traffic.patience
            return (
                f"{own.late} requests had no answer from it within {limit:g} s, which is most of them of {BEFORE:g} s"
            )
        return None

    def end(self, outcome: SwapOutcome, detail: str = "") -> SwapReport:
        """Close the watch and keep its report."""
        assert self._watch is not None
        report = self._watch.ended(rss=self._resident(), outcome=outcome, detail=detail)
        self._traffic.close(self._watch.after)
        self._watch = None
        self._keep(report)
        return report

    def _keep(self, report: SwapReport) -> None:
        self._ended = (*self._ended, report)[-REMEMBERED:]
