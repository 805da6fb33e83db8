"""The cycle over ports in memory: what it decides, in which order it stores and acts, and what a crash leaves to do."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.core.errors import DriftError, RunError
from daemon.core.states import Action, Outcome, RunState, Split
from daemon.core.stream import Advance, Batch, Example, Position, TopicPartition
from daemon.core.types import (
    ClassScore,
    EvalReport,
    ModelVersion,
    ParityReport,
    Prediction,
    RunResult,
    RunSpec,
    SliceScore,
    TrainingReport,
)
from daemon.cycle import Cycle, Ports, Subject
from daemon.learner import Bulletin
from daemon.policy.schema import Policy
from daemon.runtime.health import Board
from daemon.runtime.inbox import Requests
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import START, ManualClock
from daemon.testing.detector import Scores, ScriptedDetector
from daemon.testing.registry import InMemoryRegistry
from daemon.testing.store import InMemoryStore
from daemon.testing.trainer import FakeTrainer, Scripted

CALM, DRIFTED = {"label": 0.01, "text": 0.5}, {"label": 0.4, "text": 0.9}
POLICY = Policy.model_validate(
    {
        "drift": {"reference_examples": 40, "current_examples": 40, "min_examples": 20, "confirmations": 2},
        "triggers": {
            "bootstrap": {"min_examples": 20},
            "drift": {"min_new_examples": 10},
            "performance": {"enabled": False},
            "cooldown": "1m",
            "failure_backoff": "1m",
        },
        "gates": {"evidence": {"min_examples": 10, "min_per_class": 1}},
    }
)


def scores(accuracy: float) -> EvalReport:
    part = SliceScore(50, accuracy, accuracy)
    return EvalReport(
        eval_set="rows",
        examples=100,
        accuracy=accuracy,
        macro_f1=accuracy,
        per_class={label: ClassScore(accuracy, accuracy, accuracy, 50) for label in ("up", "down")},
        slices={"recent": part, "past": part},
        latency_ms_p50=1.0,
        latency_ms_p99=2.0,
    )


def finishes(accuracy: float, *, champion: float | None = None) -> Scripted:
    def result(spec: RunSpec) -> RunResult:
        return RunResult(
            run_id=spec.run_id,
            labels=spec.labels,
            base_digest="b" * 64,
            base_is_new=False,
            training=TrainingReport(100, 50, 10, 2, 1.0, "cpu", "fp32", 0.1, accuracy, 1),
            parity=ParityReport(50, 1e-6, 1.0),
            challenger=scores(accuracy),
            champion=None if champion is None else scores(champion),
            packages={},
        )

    return result


class SaysUp:
    """A scorer for whom everything is up."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict(self, version: ModelVersion, texts: Sequence[str]) -> Sequence[Prediction]:
        self.asked.append(len(texts))
        return [Prediction("up", 0.9, (0.9, 0.1))] * len(texts)


class Setup:
    def __init__(self, folder: Path, *script: Scripted, drift: Sequence[Scores | DriftError] = (CALM,)) -> None:
        self.store, self.registry, self.clock = InMemoryStore(), InMemoryRegistry(), ManualClock()
        self.scorer, self.trainer = SaysUp(), FakeTrainer(script)
        self.detector = ScriptedDetector(drift)
        self.board = Board(self.clock)
        ports = Ports(self.store, self.registry, self.detector, self.scorer, self.trainer, self.clock)
        subject = Subject("m", "classification", "package:x", ("up", "down"), 16, folder / "registry", folder, "1")
        bulletin = Bulletin(self.board, LearnerMetrics())
        self.cycle = Cycle(ports, subject, bulletin, lambda spec, policy: folder / spec.run_id)

    def ingest(self, count: int, *, split: Split = Split.TRAIN) -> None:
        partition = TopicPartition("t", 0)
        start = self.store.next_offsets().get(partition)
        offsets = range(start or 0, (start or 0) + count)
        labels = ("up", "down")
        examples = [
            Example(Position("t", 0, n), f"id-{n}", f"text {n}", labels[n % 2], START, START, "s", split)
            for n in offsets
        ]
        self.store.commit(Batch(examples, [], [], {partition: Advance(start, offsets.stop)}))

    def run(self, **requests: object) -> Action:
        return self.cycle.run(POLICY, Requests(**requests)).action  # type: ignore[arg-type]

    @property
    def champion(self) -> int | None:
        return self.registry.aliases("m").champion

    def bootstrap(self) -> None:
        self.ingest(60)
        assert self.run() is Action.PROMOTE
        self.clock.advance(timedelta(minutes=2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_two_rounds_of_drift_after_the_first_version(folder: Path) -> None:
    setup = Setup(
        folder,
        finishes(0.6),
        finishes(0.8, champion=0.5),
        finishes(0.9, champion=0.6),
        drift=[CALM, DRIFTED, DRIFTED, DRIFTED, DRIFTED],
    )
    assert setup.run() is Action.WAIT, "an empty store gives nothing to learn from"
    setup.bootstrap()
    setup.ingest(30)
    assert setup.run() is Action.WAIT, "no drift"
    for champion in (2, 3):
        setup.ingest(30)
        assert setup.run() is Action.WAIT, "drift is not confirmed yet"
        setup.ingest(30)
        assert setup.run() is Action.PROMOTE
        assert setup.champion == champion
        setup.clock.advance(timedelta(minutes=2))

    assert [spec.parent for spec in setup.trainer.runs] == [None, 1, 2]
    assert [spec.data.data_cut for spec in setup.trainer.runs] == [60, 150, 210]
    assert setup.registry.aliases("m").previous == 2
    assert [run.outcome for run in setup.store.runs(9)] == [Outcome.PASS] * 3
    assert all(stored.acted_at is not None for stored in setup.store.decisions(99))


def test_a_run_waits_for_enough_of_what_drifted(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.5), drift=[DRIFTED])
    setup.bootstrap()
    setup.ingest(100)
    wants = POLICY.triggers.model_copy(
        update={"drift": POLICY.triggers.drift.model_copy(update={"min_new_examples": 60})}
    )
    policy = POLICY.model_copy(update={"triggers": wants})
    actions = []
    for _ in range(3):  # the window in which drift was first seen holds 40 of the 60
        actions.append(setup.cycle.run(policy, Requests()).action)
        setup.ingest(10)
    assert actions == [Action.WAIT, Action.WAIT, Action.PROMOTE]


def test_the_same_examples_never_confirm_themselves(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), drift=[DRIFTED])
    setup.bootstrap()
    setup.ingest(30)
    assert [setup.run() for _ in range(5)] == [Action.WAIT] * 5
    assert len(setup.detector.windows) == 1


def test_each_example_is_scored_once_per_champion(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.bootstrap()
    setup.ingest(30)
    setup.run()
    setup.ingest(5)
    setup.run()
    assert setup.scorer.asked == [40 + 30, 5]


def test_a_challenger_that_fails_its_gates_changes_nothing(folder: Path) -> None:
    setup = Setup(folder, finishes(0.7), finishes(0.6, champion=0.7), drift=[DRIFTED])
    setup.bootstrap()
    for _ in range(2):
        setup.ingest(30)
        action = setup.run()
    assert action is Action.REJECT
    assert setup.champion == 1
    run = setup.store.runs(1)[0]
    assert (run.state, run.outcome, run.version) == (RunState.FINISHED, Outcome.FAIL, 2)
    assert "non_inferiority" in run.detail


def test_a_failed_run_is_remembered_and_holds_the_next_one_back(folder: Path) -> None:
    setup = Setup(folder, RunError("out of memory"), finishes(0.7))
    setup.ingest(60)
    setup.run()
    run = setup.store.runs(1)[0]
    assert (run.state, run.detail) == (RunState.FAILED, "out of memory")
    assert setup.run() is Action.WAIT, "backoff"
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.PROMOTE


def test_drift_that_cannot_be_measured_is_not_the_end_of_learning(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.6), drift=[DriftError("no evidently")])
    setup.bootstrap()
    setup.ingest(30)
    assert setup.run() is Action.WAIT
    assert setup.board.components["drift"].state == "degraded"
    setup.ingest(1)
    assert setup.run(operator="ann: now") is Action.PROMOTE


def test_a_decision_is_stored_before_it_is_acted_on(folder: Path) -> None:
    """The aliases cannot be moved: the decision is there all the same, and not marked as carried out."""
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    setup.registry.move = _dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    newest = setup.store.decisions(1)[0]
    assert (newest.decision.action, newest.decision.version, newest.acted_at) == (Action.PROMOTE, 1, None)
    assert setup.champion is None

    del setup.registry.move
    setup.cycle.resume()
    assert setup.champion == 1
    assert setup.store.decisions(1)[0].acted_at is not None
    assert setup.store.runs(1)[0].state is RunState.ABANDONED


def test_a_champion_that_moved_meanwhile_is_not_replaced_by_one_judged_against_another(folder: Path) -> None:
    def promoted_by_hand(spec: RunSpec) -> RunResult:
        aliases = setup.registry.aliases("m")
        setup.registry.move("m", replace(aliases, champion=1, previous=2))
        return finishes(0.9, champion=0.5)(spec)  # type: ignore[operator, return-value]

    setup = Setup(folder, finishes(0.5), finishes(0.7, champion=0.5), promoted_by_hand)
    setup.bootstrap()
    for request in ("first", "second"):
        setup.ingest(10)
        setup.run(operator=request)
    assert setup.champion == 1
    assert "judged against 2" in setup.store.runs(1)[0].detail


def test_an_operator_may_train_again_on_what_there_is(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.7, champion=0.6))
    setup.bootstrap()
    assert setup.run(operator="ann: other settings") is Action.PROMOTE
    rows = setup.trainer.runs[-1].data.rows
    assert (rows["train.parquet"], rows["replay.parquet"]) == (30, 30)


def test_an_operators_approval_is_waited_for(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    asks = POLICY.model_copy(update={"rollout": POLICY.rollout.model_copy(update={"approval": "operator"})})
    assert setup.cycle.run(asks, Requests()).action is Action.ASK
    aliases = setup.registry.aliases("m")
    assert (aliases.champion, aliases.challenger) == (None, 1)


def _dies(*_: object) -> None:
    raise KeyboardInterrupt
