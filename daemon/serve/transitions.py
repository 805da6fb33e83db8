"""Which single step brings what is loaded closer to what ought to be. Pure; the manager calls it again after each step.

New is loaded before old is unloaded, what answers now is never unloaded, and a version that failed too often is left alone.
While nothing answers and the champion cannot, the first of the fallbacks that can does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from daemon.core.states import ServableState
from daemon.core.types import Aliases

MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class ServableSnapshot:
    """One version as a server sees it. `failures` counts loads that failed since the aliases last moved."""

    number: int
    state: ServableState
    aspired: bool
    failures: int = 0

    @property
    def loadable(self) -> bool:
        return (
            self.aspired
            and self.state in (ServableState.UNLOADED, ServableState.FAILED)
            and self.failures < MOST_FAILURES
        )


class Step(StrEnum):
    LOAD = "load"
    SWITCH = "switch"  # this version answers from now on
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Transition:
    step: Step
    number: int


def aspired_versions(numbers: Sequence[int], aliases: Aliases, *, keep: int) -> frozenset[int]:
    """What ought to be loaded: every version with an alias and the newest `keep`."""
    return aliases.named | frozenset(sorted(numbers)[-keep:])


def next_transition(
    snapshots: Sequence[ServableSnapshot],
    *,
    champion: int | None,
    served: int | None,
    fallbacks: Sequence[int] = (),
    held: int | None = None,
) -> Transition | None:
    """None: nothing to do, or a step is still going on. `served` answers now; `champion` ought to.

    `fallbacks` are versions that may answer while nothing does, the best first: empty unless the champion cannot.
    `held` stays loaded because one may have to return to it.
    """
    if any(snapshot.state in (ServableState.LOADING, ServableState.DRAINING) for snapshot in snapshots):
        return None
    ready = {snapshot.number for snapshot in snapshots if snapshot.state is ServableState.READY}
    if champion in ready and champion != served:
        return Transition(Step.SWITCH, champion)
    loadable = [snapshot.number for snapshot in snapshots if snapshot.loadable]
    if served is None:
        able = next((number for number in fallbacks if number in ready), None)
        if able is not None:
            return Transition(Step.SWITCH, able)
    if loadable:
        failures = {snapshot.number: snapshot.failures for snapshot in snapshots}
        urgent = [number for number in (*fallbacks, champion) if number is not None and number in loadable]
        return Transition(Step.LOAD, min(urgent, key=failures.__getitem__) if urgent else max(loadable))
    unwanted = [snapshot.number for snapshot in snapshots if not snapshot.aspired and snapshot.number in ready]
    leaving = [number for number in unwanted if number not in (served, champion, held)]
    return Transition(Step.UNLOAD, min(leaving)) if leaving else None
