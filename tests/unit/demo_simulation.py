"""The demo's stream against a scripted server and learner, on a clock moved by hand."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from daemon.demo.journal import Journal
from daemon.demo.plan import Plan, play_sources
from daemon.demo.readings import decisions, status
from daemon.demo.rounds import Windows
from daemon.demo.stream import Stream
from daemon.demo.traffic import Reply
from daemon.demo.tweets import Tweet

WINDOWS = Windows(first=20, after=30, prequential=20)
PLAN = Plan(
    sources=("airline", "coachella", "apple"),
    promised=2,
    examples_per_second=20.0,
    requests_per_second=40.0,
    windows=WINDOWS,
    source_seconds=30.0,
    last_begin_seconds=0.0,
)
RUN_SECONDS = 5.0
DRIFT_AFTER_EXAMPLES = 40


class HandClock:
    """Unix seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Stop(threading.Event):
    """Waiting on it moves the clock."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        return self.is_set()


class Learner:
    """Notices a source after some of its examples, trains for some seconds, and says what `verdicts` lists, run by run."""

    def __init__(self, clock: HandClock, verdicts: Sequence[str], drift_on: Sequence[str]) -> None:
        self._clock = clock
        self._verdicts = list(verdicts)
        self._drift_on = drift_on
        self._examples = 0
        self._source, self._of_source = "", 0
        self._run_ends: float | None = None
        self._wants_run = True
        self._champion: int | None = None
        self._versions = 0
        self._decisions: list[dict[str, Any]] = []

    @property
    def champion(self) -> int | None:
        return self._champion

    def stored(self, source: str) -> None:
        self._examples += 1
        self._of_source = self._of_source + 1 if source == self._source else 1
        if self._of_source == 1:
            self._source, self._wants_run = source, not self._source or source in self._drift_on
        if self._run_ends is not None and self._clock() >= self._run_ends:
            self._judge()
        elif self._run_ends is None and self._wants_run and self._of_source >= DRIFT_AFTER_EXAMPLES:
            self._run_ends = self._clock() + RUN_SECONDS
            self._decide(
                "train", triggers=[{"kind": "drift" if self._champion else "bootstrap"}], evidence=self._facts()
            )

    def _judge(self) -> None:
        verdict = self._verdicts.pop(0)
        self._versions += 1
        gates = [{"gate": "floor", "outcome": verdict, "reason": "accuracy 61.0 %, the policy asks 50.0 %"}]
        self._decide(
            "promote" if verdict == "pass" else "reject",
            version=self._versions,
            verdict={"outcome": verdict, "gates": gates},
            evidence={"challenger": {"accuracy": 0.61, "macro_f1": float("nan")}, "champion": None},
        )
        if verdict == "pass":
            self._champion, self._wants_run = self._versions, False
        self._run_ends = None

    def _facts(self) -> dict[str, Any]:
        if not self._champion:
            return {"champion": None, "drift": None}
        columns = {"label": {"score": 0.31, "threshold": 0.15, "drifted": True}}
        return {
            "champion": self._champion,
            "drift": {"drifted": True, "columns": columns, "current_to_seq": self._examples},
        }

    def _decide(self, action: str, **more: Any) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        self._decisions.insert(
            0, {"number": len(self._decisions) + 1, "decision": {"at": at, "action": action, **more}}
        )

    def status(self) -> dict[str, Any]:
        training = self._run_ends is not None
        return {
            "stage": "training" if training else "idle",
            "stream": {"examples": self._examples, "dead_letters": 0, "lag": 0},
            "aliases": {"champion": self._champion},
            "run": {"id": "r", "progress": {"stage": "train", "done": 3, "total": 9, "unit": "steps"}}
            if training
            else None,
            "drift": self._facts()["drift"],
            "drift_in_a_row": 1,
        }

    def decisions(self) -> dict[str, Any]:
        return {"decisions": self._decisions}


class Show:
    """Stream, server, topic and learner together; every example reaches the learner at once."""

    def __init__(self, verdicts: Sequence[str], *, drift_on: Sequence[str], plan: Plan = PLAN) -> None:
        self.clock = HandClock()
        self.stop = Stop(self.clock)
        self.started = self.clock()
        self.learner = Learner(self.clock, verdicts, drift_on)
        self.journal = Journal(plan.windows, started=self.started, clock=self.clock)
        self.asked: list[str] = []
        self.written: list[bytes] = []
        self._plan = plan

    # the server
    @property
    def ready(self) -> bool:
        return self.learner.champion is not None

    def ask(self, text: str) -> Reply:
        self.asked.append(text)
        self.clock.now += 0.004
        knows = text.split()[0] in self._known()
        return Reply(4.0, version=self.learner.champion, label="positive" if knows else "negative")

    def _known(self) -> Sequence[str]:
        return self._plan.sources[: self.learner.champion or 0]

    # the topic
    def write(self, key: bytes, value: bytes) -> None:
        self.written.append(value)
        if not key.startswith(b"broken"):
            self.learner.stored(key.decode().split("-")[0])
            seen = decisions(self.learner.decisions(), started=self.started)
            self.journal.observed(status(self.learner.status()), seen)

    def play(self) -> list[str]:
        player = Stream(
            self,
            self,
            self.journal,
            examples_per_second=self._plan.examples_per_second,
            requests_per_second=self._plan.requests_per_second,
            clock=self.clock,
            stop=self.stop,
        )
        tweets = {source: tweets_of(source, 2000) for source in self._plan.sources}
        return play_sources(self._plan, tweets, player, self.journal, clock=self.clock, stop=self.stop)


def tweets_of(source: str, count: int) -> list[Tweet]:
    return [Tweet(f"{source}-{number}", f"{source} {number}", "positive", source) for number in range(count)]
