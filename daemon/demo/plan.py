"""What the demo promises, in numbers, and the order in which its sources are played. Pure.

On the first source a model is trained from nothing; each later one must be noticed as drift, lead to a run and a promotion,
and be answered by the new version. A promised source that does not come so far ends the demo.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from daemon.demo.journal import Journal
from daemon.demo.rounds import Windows
from daemon.demo.tweets import SOURCES, Tweet


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers of a scenario. The first source is the bootstrap's, the `promised` next ones must each give a full round.

    A source lasts until its round is done and measured, at most `source_seconds`, which is generous: a slow machine is not a
    broken promise. Sources beyond the promised ones are played only if they can begin within `last_begin_seconds` of the
    start.
    """

    sources: Sequence[str]
    promised: int
    examples_per_second: float
    requests_per_second: float
    windows: Windows
    source_seconds: float
    last_begin_seconds: float
    policy_changes: Mapping[str, Any] = field(default_factory=dict)

    def at_rate(self, examples_per_second: float | None) -> "Plan":
        """None keeps the plan's own. Each example is asked about first, so there are never fewer requests."""
        if examples_per_second is None:
            return self
        requests = max(self.requests_per_second, examples_per_second)
        return replace(self, examples_per_second=examples_per_second, requests_per_second=requests)


FULL = Plan(
    sources=SOURCES,
    promised=3,
    examples_per_second=25.0,
    requests_per_second=40.0,
    windows=Windows(first=100, after=250, prequential=150),
    source_seconds=240.0,
    last_begin_seconds=260.0,
)
FAST = Plan(
    sources=SOURCES[:3],
    promised=2,
    examples_per_second=40.0,
    requests_per_second=40.0,
    windows=Windows(first=60, after=60, prequential=60),
    source_seconds=150.0,
    last_begin_seconds=0.0,
    policy_changes={
        "drift": {"observe_every": "1s", "reference_examples": 200, "current_examples": 200, "min_examples": 150},
        "triggers": {"bootstrap": {"min_examples": 200}, "drift": {"min_new_examples": 200}},
        "training": {"learning_rate": 0.003, "max_examples": 160, "max_validation": 30},
        # So few examples swing by some points by chance alone.
        "gates": {
            "max_holdout": 60,
            "floor": {"accuracy": "35%"},
            "non_inferiority": {"recent_margin": "10%", "past_margin": "20%"},
        },
    },
)


class Player(Protocol):
    def play(self, tweets: Sequence[Tweet], *, over: Callable[[], bool]) -> None:
        """Tweet after tweet until `over` says so."""


def by_source(stream: Sequence[Tweet]) -> dict[str, list[Tweet]]:
    """The tweets of each source, in order."""
    found: dict[str, list[Tweet]] = {}
    for tweet in stream:
        found.setdefault(tweet.source, []).append(tweet)
    return found


def play_sources(
    plan: Plan,
    tweets: Mapping[str, Sequence[Tweet]],
    player: Player,
    journal: Journal,
    *,
    clock: Callable[[], float],
    stop: threading.Event,
) -> list[str]:
    """Source after source. Returns what a promised one lacked, as sentences; such a source is the last one played."""
    started = clock()
    for place, source in enumerate(plan.sources):
        promised = place <= plan.promised
        began = clock()
        if stop.is_set() or (not promised and began - started > plan.last_begin_seconds):
            break
        journal.source_begins(source, bootstrap=place == 0)
        player.play(tweets[source], over=_done_or_late(journal, began + plan.source_seconds, clock))
        missing = journal.source_ends().missing
        if promised and missing:
            return [f"{missing} ({clock() - began:.0f} s were spent on this source)"]
    return []


def _done_or_late(journal: Journal, deadline: float, clock: Callable[[], float]) -> Callable[[], bool]:
    return lambda: journal.source_done or clock() > deadline
