"""The one place that changes what is loaded and what answers. It watches the registry's aliases and takes one step at a time."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import structlog

from daemon.core.errors import ArtefactError, RelearndError
from daemon.core.ports import Clock, Registry
from daemon.core.states import ServableState
from daemon.core.types import Aliases, ModelVersion
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.last_good import LastGoodFile
from daemon.serve.router import Loaded, Router, Slot
from daemon.serve.shadow import Comparison
from daemon.serve.swap_report import SwapJudge, SwapOutcome, SwapReport, Switch
from daemon.serve.transitions import (
    MOST_FAILURES,
    ServableSnapshot,
    Step,
    Transition,
    aspired_versions,
    next_transition,
)

log = structlog.get_logger(__name__)

_DEADLY = 2  # loads that ended the process


class Loader(Protocol):
    def load_warm(self, version: ModelVersion) -> Loaded:
        """Loads, verifies and warms up. Raises ArtefactError, or UnavailableError where there is no room for it."""

    def unloaded(self) -> None:
        """A version was let go: what only it needed may go too."""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """A version in this server. `error` is why its last load failed, or why it was refused after it was loaded."""

    number: int
    state: ServableState = ServableState.UNLOADED
    aspired: bool = False
    failures: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """One consistent picture for operators. `champion` ought to answer, `served` does; `canary` and `shadow` are at work."""

    model: str
    served: int | None
    champion: int | None
    generation: int
    versions: Sequence[VersionStatus]
    swaps: Sequence[SwapReport]
    registry_error: str | None
    canary: int | None = None
    canary_share: float = 0.0
    shadow: int | None = None
    comparison: Comparison | None = None

    @property
    def waiting_for(self) -> str | None:
        """Why nothing is served; None when something is."""
        if self.served is not None:
            return None
        if self.registry_error:
            return self.registry_error
        if self.champion is None:
            return f"model '{self.model}' has no champion yet"
        failure = self._error_of(self.champion)
        return f"champion {self.champion} cannot be loaded: {failure}" if failure else f"loading {self.champion}"

    @property
    def degraded_because(self) -> str | None:
        """Why another version than the champion answers, or the registry is not followed; None when all is as it ought to be."""
        if self.served is None:
            return None
        failure = self._error_of(self.champion)
        if self.served != self.champion and failure:
            return f"champion {self.champion} is not served: {failure}; version {self.served} answers"
        if self.registry_error:
            return f"the registry cannot be read: {self.registry_error}; version {self.served} answers"
        return None

    def _error_of(self, number: int | None) -> str | None:
        return next((version.error for version in self.versions if version.number == number), None)


class Manager:
    """`run` is the body of the manager's thread and `refresh` one pass of it; `status` may be asked from any thread."""

    def __init__(
        self,
        model: str,
        *,
        registry: Registry,
        loader: Loader,
        router: Router,
        judge: SwapJudge,
        last_good: LastGoodFile,
        comparison: Callable[[], Comparison | None],
        metrics: ServerMetrics,
        clock: Clock,
        keep: int,
        drain_limit: timedelta,
    ) -> None:
        self._model = model
        self._registry = registry
        self._loader = loader
        self._router = router
        self._judge = judge
        self._last_good_file = last_good
        self._last_good = last_good.read(model)
        self._comparison = comparison
        self._metrics = metrics
        self._clock = clock
        self._keep = keep
        self._drain_limit = drain_limit
        self._aliases = Aliases()
        self._listed: Aliases | None = None  # the aliases at which all versions were last listed
        self._noticed = time.monotonic()  # when the champion last changed
        self._slots: dict[int, Slot] = {}
        self._served: int | None = None
        self._leaving = False
        # Read by `status` on other threads, so replaced and never changed:
        self._versions: Mapping[int, VersionStatus] = {}
        self._registry_error: str | None = None

    def run(
        self,
        stop: threading.Event,
        beat: Callable[[], None],
        *,
        poll_every: timedelta,
        tell: Callable[[ServingStatus], None],
    ) -> None:
        """`tell` is called after each pass, but when the stop came meanwhile: what a server meets then says nothing of versions."""
        while not stop.is_set():
            beat()
            self.refresh()
            if not stop.is_set():
                tell(self.status())
            stop.wait(poll_every.total_seconds())

    def refresh(self) -> None:
        """Take steps until there is none left or one fails, which is tried again at the next pass."""
        self._watch()
        while not self._leaving and self._step():
            pass

    def leave(self) -> None:
        """The process ends of its own will: no step is begun any more, and a load that is cut off counts for nothing.

        From any thread.
        """
        self._leaving = True
        self._last_good_file.leave()

    def _step(self) -> bool:
        """Read the registry anew each time: if the champion moved while a version was loading, that comes first."""
        self._read_registry()
        transition = self._next()
        return transition is not None and self._apply(transition)

    def status(self) -> ServingStatus:
        versions, aliases, served = self._versions, self._aliases, self._router.served
        canary, shadow = self._router.canary, self._router.shadow
        return ServingStatus(
            model=self._model,
            served=served.number if served else None,
            champion=aliases.champion,
            generation=aliases.generation,
            versions=[versions[number] for number in sorted(versions)],
            swaps=self._judge.reports,
            registry_error=self._registry_error,
            canary=canary.number if canary else None,
            canary_share=aliases.canary_share if canary else 0.0,
            shadow=shadow.number if shadow else None,
            comparison=self._comparison(),
        )

    # --- what ought to be ---

    def _read_registry(self) -> None:
        """What cannot be read stays as it was last seen; the aliases alone are enough to serve.

        All versions are listed only when the aliases have moved: each look would read every version there ever was, and a
        version that was added is followed by a move.
        """
        try:
            aliases = self._registry.aliases(self._model)
            if aliases != self._listed:
                self._aspire(aliases, self._versions)
                self._aspire(aliases, [version.number for version in self._registry.versions(self._model)])
                self._listed = aliases
        except (RelearndError, OSError) as error:
            self._registry_failed(str(error))
        else:
            self._registry_error = None

    def _aspire(self, aliases: Aliases, numbers: Sequence[int] | Mapping[int, VersionStatus]) -> None:
        moved = aliases.generation != self._aliases.generation
        if aliases.champion != self._aliases.champion:
            self._noticed = time.monotonic()
            self._judge.moved()
        self._aliases = aliases
        aspired = aspired_versions(list(numbers), aliases, keep=self._keep)
        known = {number: self._versions.get(number, VersionStatus(number)) for number in aspired | self._slots.keys()}
        self._versions = {
            number: replace(version, aspired=number in aspired, failures=0 if moved else version.failures)
            for number, version in known.items()
        }
        if moved:
            self._publish()

    def _registry_failed(self, error: str) -> None:
        if error != self._registry_error:
            log.error(f"the registry cannot be read; what is loaded goes on: {error}", action="registry_unreadable")
        self._registry_error = error

    def _next(self) -> Transition | None:
        fallbacks = self._fallbacks()
        for number in fallbacks:
            if number not in self._versions:
                self._versions = {**self._versions, number: VersionStatus(number, aspired=True)}
        snapshots = [
            ServableSnapshot(version.number, version.state, version.aspired, version.failures)
            for version in self._versions.values()
        ]
        return next_transition(
            snapshots,
            champion=self._aliases.champion,
            served=self._served,
            fallbacks=fallbacks,
            held=self._judge.held,
        )

    def _fallbacks(self) -> Sequence[int]:
        """Who may answer while nobody does: none as long as the champion may yet be loaded."""
        champion = self._versions.get(self._aliases.champion or 0)
        unknown = self._aliases.generation == 0 and self._registry_error is not None
        if self._served is not None or not (unknown or (champion and champion.failures)):
            return []
        return self._candidates()

    def _candidates(self) -> Sequence[int]:
        """Who may answer in the champion's place, the best first."""
        last_good = self._last_good.number if self._last_good and self._knows(self._last_good) else None
        candidates = dict.fromkeys((last_good, self._aliases.previous))
        return [number for number in candidates if number is not None and number != self._aliases.champion]

    # --- one step ---

    def _apply(self, transition: Transition) -> bool:
        """False when the step failed."""
        match transition.step:
            case Step.LOAD:
                return self._load_version(transition.number)
            case Step.SWITCH:
                self._switch(transition.number)
            case Step.UNLOAD:
                self._unload(transition.number)
        return True

    def _load_version(self, number: int) -> bool:
        self._set(number, state=ServableState.LOADING)
        if number == self._aliases.champion:
            self._judge.loading(number)
        try:
            version = self._record(number)
            self._refuse_deadly(version)
            with self._last_good_file.loading(version, self._aliases.generation):
                loaded = self._loader.load_warm(version)
        except Exception as error:  # whatever it is, what answers now goes on answering
            self._load_failed(number, str(error) or repr(error))
            return False
        self._slots[number] = Slot(version, loaded.predictor, loaded.golden)
        self._set(number, state=ServableState.READY, failures=0, error=None)
        self._publish()
        log.info(f"version {number} of {self._model} is loaded", action="version_loaded", version=number)
        return True

    def _refuse_deadly(self, version: ModelVersion) -> None:
        """What has ended this process again and again is not tried once more where another can answer. Raises ArtefactError."""
        times = self._last_good_file.unended(version, self._aliases.generation)
        if times >= _DEADLY and (self._served is not None or set(self._candidates()) - {version.number}):
            raise ArtefactError(
                f"its load has ended this process {times} times: is there memory enough? It is tried again when the aliases move"
            )

    def _knows(self, remembered: ModelVersion) -> bool:
        """False when the registry has another version of this number: it is not the registry that we served from then."""
        try:
            return self._record(remembered.number).digest == remembered.digest
        except (RelearndError, OSError):
            return False

    def _record(self, number: int) -> ModelVersion:
        """What the registry says of a version; what we remember of the last good one when it cannot say."""
        try:
            return self._registry.version(self._model, number)
        except (RelearndError, OSError):
            if self._last_good and self._last_good.number == number:
                return self._last_good
            raise

    def _load_failed(self, number: int, error: str) -> None:
        failures = self._versions[number].failures + 1
        self._set(number, state=ServableState.FAILED, failures=failures, error=error)
        self._metrics.load_failures.inc()
        if number == self._aliases.champion:
            self._metrics.swaps.labels("failed").inc()
            self._judge.not_loaded(number, at=self._clock(), before=self._served, error=error)
        if failures == 1:
            log.error(
                f"version {number} of {self._model} cannot be loaded, {self._served or 'nothing'} goes on answering: {error}",
                action="load_failed",
                version=number,
                served=self._served,
            )

    def _switch(self, number: int) -> None:
        """Let `number` answer, prove at the endpoint that it does as it ought to, and return to what was there if not."""
        if self._judge.watched is not None:
            self._stands()
        slot, before = self._slots[number], self._served
        started = time.perf_counter()
        self._served = number
        self._publish()
        ms = 1000 * (time.perf_counter() - started)
        switch = Switch(self._clock(), before, time.monotonic() - self._noticed, ms)
        report = self._judge.switched(switch, slot)
        wanting = self._judge.wanting()
        if wanting:
            self._return(wanting)
            return
        self._metrics.swaps.labels("switched").inc()
        self._metrics.swap_seconds.observe(switch.seconds)
        log.info(
            f"version {number} of {self._model} answers, after {before or 'none'}", action="swapped", **report.facts
        )

    def _unload(self, number: int) -> None:
        slot = self._take_off(number)
        self._set(number, state=ServableState.DRAINING)
        self._drain(slot)
        self._versions = {other: version for other, version in self._versions.items() if other != number}
        del slot
        self._loader.unloaded()
        log.info(f"version {number} of {self._model} is unloaded", action="version_unloaded", version=number)

    def _take_off(self, number: int) -> Slot:
        """Off the routes, so that no new handle is lent."""
        slot = self._slots.pop(number)
        self._publish()
        return slot

    def _drain(self, slot: Slot) -> None:
        if not slot.drain(self._drain_limit.total_seconds()):
            log.warning(
                f"requests on version {slot.version.number} outlast {self._drain_limit}; they keep it in memory until they end",
                action="drain_timed_out",
                version=slot.version.number,
            )

    # --- whether a swap stands ---

    def _watch(self) -> None:
        """A new champion is returned from when requests fail on it, and is the last good one when its watch is over."""
        self._judge.prove()
        wanting = self._judge.wanting()
        if wanting:
            self._return(wanting)
        elif self._judge.over:
            self._stands()
        canary = self._router.canary
        if canary and (failing := self._judge.failing(canary.number)):
            log.error(f"canary {canary.number} is taken off: {failing}", action="canary_refused", version=canary.number)
            self._refuse(canary.number, failing)

    def _stands(self) -> None:
        report = self._judge.end(SwapOutcome.SWITCHED)
        self._metrics.swap_failed_requests.inc(report.failed or 0)
        if report.golden and report.golden.equal:
            self._remember(self._slots[report.after].version)
        log.info(
            f"the swap to version {report.after} of {self._model} stands: {report.requests} requests, {report.failed} failed",
            action="swap_report",
            **report.facts,
        )

    def _remember(self, version: ModelVersion) -> None:
        if version != self._last_good:
            self._last_good = version
            self._last_good_file.write(version, self._clock())

    def _return(self, wanting: str) -> None:
        """To the version before."""
        report = self._judge.end(SwapOutcome.RETURNED, wanting)
        self._served = report.before if report.before in self._slots else None
        self._publish()
        self._metrics.swaps.labels("returned").inc()
        self._metrics.swap_failed_requests.inc(report.failed or 0)
        log.error(
            f"version {report.after} of {self._model} is refused, {self._served or 'nothing'} answers again: {wanting}",
            action="swap_returned",
            **report.facts,
        )
        self._refuse(report.after, wanting)

    def _refuse(self, number: int, reason: str) -> None:
        """A loaded version goes, and is left alone until the aliases move."""
        slot = self._take_off(number)
        self._set(number, state=ServableState.FAILED, failures=MOST_FAILURES, error=reason)
        self._drain(slot)
        del slot
        self._loader.unloaded()

    # --- what is known and shown ---

    def _publish(self) -> None:
        aliases, slots = self._aliases, self._slots
        canary, shadow = self._on_trial(aliases.canary), self._on_trial(aliases.shadow)
        self._router.publish(
            slots[self._served] if self._served is not None else None,
            slots,
            canary=canary,
            canary_share=aliases.canary_share,
            shadow=shadow,
        )
        self._metrics.champion.set(self._served or 0)
        self._metrics.canary.set(canary.version.number if canary else 0)
        self._metrics.loaded.set(len(slots))

    def _on_trial(self, number: int | None) -> Slot | None:
        """None too while it is not loaded, or answers everything anyway."""
        return self._slots.get(number) if number is not None and number != self._served else None

    def _set(self, number: int, **changes: object) -> None:
        self._versions = {**self._versions, number: replace(self._versions[number], **changes)}  # type: ignore[arg-type]
