"""Which single step brings what is loaded closer to what ought to be. Pure; the manager calls it again after each step.

New is loaded before old is unloaded, what answers now is never unloaded, and a version that failed too often is left alone.
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
    named = (aliases.champion, aliases.challenger, aliases.previous)
    return frozenset(number for number in named if number is not None) | frozenset(sorted(numbers)[-keep:])


def next_transition(
    snapshots: Sequence[ServableSnapshot], *, champion: int | None, served: int | None
) -> Transition | None:
    """None: nothing to do, or a step is still going on. `served` answers now; `champion` ought to."""
    if any(snapshot.state in (ServableState.LOADING, ServableState.DRAINING) for snapshot in snapshots):
        return None
    ready = {snapshot.number for snapshot in snapshots if snapshot.state is ServableState.READY}
    if champion in ready and champion != served:
        return Transition(Step.SWITCH, champion)
    loadable = [snapshot.number for snapshot in snapshots if snapshot.loadable]
    if loadable:
        return Transition(Step.LOAD, champion if champion in loadable else max(loadable))
    unwanted = [snapshot.number for snapshot in snapshots if not snapshot.aspired and snapshot.number in ready]
    leaving = [number for number in unwanted if number not in (served, champion)]
    return Transition(Step.UNLOAD, min(leaving)) if leaving else None
