"""The one place that changes what is loaded and what answers. It watches the registry's aliases and takes one step at a time."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from daemon.core.errors import RelearndError
from daemon.core.ports import Clock, Registry
from daemon.core.states import ServableState
from daemon.core.types import Aliases, ModelVersion
from daemon.runtime.telemetry import ServerMetrics
from daemon.serve.router import Predictor, Router, Slot
from daemon.serve.transitions import ServableSnapshot, Step, Transition, aspired_versions, next_transition

log = structlog.get_logger(__name__)

SWAPS_REMEMBERED = 100

Load = Callable[[ModelVersion], Predictor]  # loads, verifies and warms up; raises ArtefactError


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """A version in this server. `error` is why its last load failed."""

    number: int
    state: ServableState = ServableState.UNLOADED
    aspired: bool = False
    failures: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Swap:
    """`seconds` passed between noticing the new champion and answering with it: load, verify, warm up, switch."""

    at: datetime
    before: int | None
    after: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """One consistent picture for operators. `champion` ought to answer, `served` does."""

    model: str
    served: int | None
    champion: int | None
    generation: int
    versions: Sequence[VersionStatus]
    swaps: Sequence[Swap]
    registry_error: str | None

    @property
    def waiting_for(self) -> str | None:
        """Why nothing is served; None when something is."""
        if self.served is not None:
            return None
        if self.registry_error:
            return self.registry_error
        if self.champion is None:
            return f"model '{self.model}' has no champion yet"
        failure = next((version.error for version in self.versions if version.number == self.champion), None)
        return f"champion {self.champion} cannot be loaded: {failure}" if failure else f"loading {self.champion}"


class Manager:
    """`run` is the body of the manager's thread and `refresh` one pass of it; `status` may be asked from any thread."""

    def __init__(
        self,
        model: str,
        *,
        registry: Registry,
        load: Load,
        router: Router,
        metrics: ServerMetrics,
        clock: Clock,
        keep: int,
        drain_limit: timedelta,
    ) -> None:
        self._model = model
        self._registry = registry
        self._load = load
        self._router = router
        self._metrics = metrics
        self._clock = clock
        self._keep = keep
        self._drain_limit = drain_limit
        self._aliases = Aliases()
        self._listed: Aliases | None = None  # the aliases at which all versions were last listed
        self._noticed = time.monotonic()  # when the champion last changed
        self._slots: dict[int, Slot] = {}
        self._served: int | None = None
        # Read by `status` on other threads, so replaced and never changed:
        self._versions: Mapping[int, VersionStatus] = {}
        self._registry_error: str | None = None
        self._swaps: tuple[Swap, ...] = ()

    def run(self, stop: threading.Event, beat: Callable[[], None], *, poll_every: timedelta) -> None:
        while not stop.is_set():
            beat()
            self.refresh()
            stop.wait(poll_every.total_seconds())

    def refresh(self) -> None:
        """Take steps until there is none left or one fails, which is tried again at the next pass."""
        while self._step():
            pass

    def _step(self) -> bool:
        """Read the registry anew each time: if the champion moved while a version was loading, that comes first."""
        self._read_registry()
        transition = self._next()
        return transition is not None and self._apply(transition)

    def status(self) -> ServingStatus:
        versions, aliases, served = self._versions, self._aliases, self._router.served
        return ServingStatus(
            model=self._model,
            served=served.number if served else None,
            champion=aliases.champion,
            generation=aliases.generation,
            versions=[versions[number] for number in sorted(versions)],
            swaps=self._swaps,
            registry_error=self._registry_error,
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
        self._aliases = aliases
        aspired = aspired_versions(list(numbers), aliases, keep=self._keep)
        known = {number: self._versions.get(number, VersionStatus(number)) for number in aspired | self._slots.keys()}
        self._versions = {
            number: replace(version, aspired=number in aspired, failures=0 if moved else version.failures)
            for number, version in known.items()
        }

    def _registry_failed(self, error: str) -> None:
        if error != self._registry_error:
            log.error(f"the registry cannot be read; what is loaded goes on: {error}", action="registry_unreadable")
        self._registry_error = error

    def _next(self) -> Transition | None:
        snapshots = [
            ServableSnapshot(version.number, version.state, version.aspired, version.failures)
            for version in self._versions.values()
        ]
        return next_transition(snapshots, champion=self._aliases.champion, served=self._served)

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
        try:
            version = self._registry.version(self._model, number)
            self._slots[number] = Slot(version, self._load(version))
        except Exception as error:  # whatever it is, what answers now goes on answering
            self._load_failed(number, str(error) or repr(error))
            return False
        self._set(number, state=ServableState.READY, failures=0, error=None)
        self._publish()
        log.info(f"version {number} of {self._model} is loaded", action="version_loaded", version=number)
        return True

    def _load_failed(self, number: int, error: str) -> None:
        failures = self._versions[number].failures + 1
        self._set(number, state=ServableState.FAILED, failures=failures, error=error)
        self._metrics.load_failures.inc()
        if number == self._aliases.champion:
            self._metrics.swaps.labels("failed").inc()
        if failures == 1:
            log.error(
                f"version {number} of {self._model} cannot be loaded, {self._served or 'nothing'} goes on answering: {error}",
                action="load_failed",
                version=number,
                served=self._served,
            )

    def _switch(self, number: int) -> None:
        before, self._served = self._served, number
        self._publish()
        seconds = time.monotonic() - self._noticed
        self._swaps = (*self._swaps, Swap(self._clock(), before, number, seconds))[-SWAPS_REMEMBERED:]
        self._metrics.swaps.labels("switched").inc()
        self._metrics.swap_seconds.observe(seconds)
        log.info(
            f"version {number} of {self._model} answers, after {before or 'none'}",
            action="swapped",
            version=number,
            before=before,
            seconds=round(seconds, 3),
        )

    def _unload(self, number: int) -> None:
        """Take it off the routes first, so that no new handle is lent; then wait for those that are out."""
        slot = self._slots.pop(number)
        self._set(number, state=ServableState.DRAINING)
        self._publish()
        if not slot.drain(self._drain_limit.total_seconds()):
            log.warning(
                f"requests on version {number} outlast {self._drain_limit}; they keep it in memory until they end",
                action="drain_timed_out",
                version=number,
            )
        self._versions = {other: version for other, version in self._versions.items() if other != number}
        log.info(f"version {number} of {self._model} is unloaded", action="version_unloaded", version=number)

    def _publish(self) -> None:
        champion = self._slots[self._served] if self._served is not None else None
        self._router.publish(champion, self._slots)
        self._metrics.champion.set(self._served or 0)
        self._metrics.loaded.set(len(self._slots))

    def _set(self, number: int, **changes: object) -> None:
        self._versions = {**self._versions, number: replace(self._versions[number], **changes)}  # type: ignore[arg-type]
