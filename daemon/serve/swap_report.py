"""What a swap was worth: proof that the endpoint answers as the judge saw it, what requests met meanwhile, what memory it took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from daemon.core.artefact import Golden
from daemon.core.types import ModelVersion
from daemon.serve.traffic import Span, Traffic

REMEMBERED = 100  # reports
BEFORE = 10.0  # seconds before the swap that it is compared with


class SwapOutcome(StrEnum):
    WATCHED = "watched"  # it answers, and requests are still watched
    SWITCHED = "switched"
    RETURNED = "returned"  # it was found wanting; the version before answers again


@dataclass(frozen=True, slots=True)
class GoldenProof:
    """Golden texts asked at the endpoint, after the switch. `sha256` is of the judge's record that answers were held against."""

    sha256: str
    texts: int
    equal: bool
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
    """`seconds` and `switch_ms` as in Switch; `load_ms` to verify, open, check golden outputs and warm up: 0 when that was done.

    `requests` ended from the beginning of the load until the watch was over, ours with golden texts among them; `failed` of them
    failed by a fault of ours. `p99_ms_*` are None where there were no requests. `rss_*` are bytes of the whole process.
    """

    at: datetime
    before: int | None
    after: int
    outcome: SwapOutcome
    seconds: float
    load_ms: float
    switch_ms: float
    golden: GoldenProof
    requests: int = 0
    failed: int = 0
    p99_ms_before: float | None = None
    p99_ms_during: float | None = None
    p99_ms_after: float | None = None
    rss_before: int = 0
    rss_after: int = 0
    detail: str = ""  # why it was returned

    @property
    def facts(self) -> Mapping[str, object]:
        """For a log line."""
        return {
            "before": self.before,
            "version": self.after,
            "seconds": round(self.seconds, 3),
            "switch_ms": round(self.switch_ms, 3),
            "golden_equal": self.golden.equal,
            "requests": self.requests,
            "failed": self.failed,
            "p99_ms": (self.p99_ms_before, self.p99_ms_during, self.p99_ms_after),
            "rss": (self.rss_before, self.rss_after),
        }


Prove = Callable[[ModelVersion, Golden], GoldenProof]  # at the endpoint; never raises


@dataclass(frozen=True, slots=True)
class _Watch:
    """A swap whose requests are still watched. Times are the traffic's monotonic seconds."""

    report: SwapReport
    started: float
    switched: float

    def failures(self, traffic: Traffic) -> int:
        """Requests on the new version that failed since the switch."""
        return traffic.between(self.switched, traffic.now(), version=self.report.after).failed

    def ended(self, traffic: Traffic, *, rss: int, outcome: SwapOutcome, detail: str = "") -> SwapReport:
        now = traffic.now()
        whole = traffic.between(self.started, now)
        spans: dict[str, Span] = {
            "p99_ms_before": traffic.between(self.started - BEFORE, self.started),
            "p99_ms_during": traffic.between(self.started, self.switched),
            "p99_ms_after": traffic.between(self.switched, now),
        }
        return replace(
            self.report,
            outcome=outcome,
            requests=whole.requests,
            failed=whole.failed,
            rss_after=rss,
            detail=detail,
            **{name: span.p99_ms for name, span in spans.items()},  # type: ignore[arg-type]
        )


class SwapJudge:
    """Says whether a swap stands, and keeps the reports. Used by the manager's thread; `reports` may be read from any."""

    def __init__(self, prove: Prove, traffic: Traffic, *, watch: float, resident: Callable[[], int]) -> None:
        """`watch`: seconds for which requests on a new version are watched; `resident`: bytes of this process in memory."""
        self._prove = prove
        self._traffic = traffic
        self._watch_for = watch
        self._resident = resident
        self._loading: dict[int, tuple[float, int]] = {}  # since when, and memory then
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
        self._loading = {champion: (self._traffic.now(), self._resident())}

    def switched(self, switch: Switch, version: ModelVersion, golden: Golden) -> SwapReport:
        """Called right after the switch: asks the endpoint for the proof, and watches from then on."""
        now = self._traffic.now()
        started, rss = self._loading.pop(version.number, (now, self._resident()))
        report = SwapReport(
            at=switch.at,
            before=switch.before,
            after=version.number,
            outcome=SwapOutcome.WATCHED,
            seconds=switch.seconds,
            load_ms=1000 * (now - started),
            switch_ms=switch.ms,
            golden=self._prove(version, golden),
            rss_before=rss,
        )
        self._watch = _Watch(report, started, now)
        return report

    def wanting(self) -> str | None:
        """Why the watched swap does not stand; None while nothing speaks against it."""
        if self._watch is None:
            return None
        if not self._watch.report.golden.equal:
            return f"it does not answer its golden texts at the endpoint as when it was judged: {self._watch.report.golden.detail}"
        if self.held is None:  # nothing to return to, and some answers are better than none
            return None
        failed = self._watch.failures(self._traffic)
        return f"{failed} requests failed on it since the switch" if failed else None

    @property
    def over(self) -> bool:
        """Whether a swap has been watched for long enough."""
        return self._watch is not None and self._traffic.now() - self._watch.switched >= self._watch_for

    def failing(self, version: int) -> str | None:
        """Why a version that is no champion should not be sent requests; None when nothing speaks against it."""
        now = self._traffic.now()
        failed = self._traffic.between(now - BEFORE, now, version=version).failed
        return f"{failed} requests failed on it within {BEFORE:g} s" if failed else None

    def end(self, outcome: SwapOutcome, detail: str = "") -> SwapReport:
        """Close the watch and keep its report."""
        assert self._watch is not None
        report = self._watch.ended(self._traffic, rss=self._resident(), outcome=outcome, detail=detail)
        self._ended = (*self._ended, report)[-REMEMBERED:]
        self._watch = None
        return report
