"""The cycle over ports in memory: what it decides, in which order it stores and acts, and what a crash leaves to do."""

import errno
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.control.operations import Operations
from daemon.core.errors import ArtefactError, DriftError, RunCancelled, RunError, RunPutOff, StoreError
from daemon.core.states import Action, Outcome, RunState, Split
from daemon.core.stream import Advance, Batch, Example, Position, TopicPartition
from daemon.core.types import (
    ClassScore,
    Decision,
    EvalReport,
    ModelVersion,
    ParityReport,
    Prediction,
    Refusal,
    RunResult,
    RunSpec,
    ServerReport,
    SliceScore,
    TrainingReport,
)
from daemon.cycle import Cycle, Ports, Subject
from daemon.learner import Bulletin
from daemon.policy.schema import DriftPolicy, Policy
from daemon.runtime.health import Board
from daemon.runtime.inbox import Requests
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import START, ManualClock
from daemon.testing.detector import Scores, ScriptedDetector
from daemon.testing.registry import InMemoryRegistry
from daemon.testing.store import InMemoryStore
from daemon.testing.trainer import FakeTrainer, Scripted

MONTH = timedelta(days=30)
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
        self.damaged: int | None = None  # the version whose files are

    def predict(self, version: ModelVersion, texts: Sequence[str]) -> Sequence[Prediction]:
        if version.number == self.damaged:
            raise ArtefactError("weights.safetensors: another sha256")
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
        self.metrics = LearnerMetrics()
        bulletin = Bulletin(self.board, self.metrics)
        self.start = lambda: Cycle(ports, subject, bulletin, lambda spec, policy: folder / spec.run_id)
        self.cycle = self.start()
        self.operations = Operations(
            model="m",
            store=self.store,
            registry=self.registry,
            clock=self.clock,
            cancel_run=self.trainer.cancel,
            policy_hash=lambda: POLICY.hash,
            changed=lambda: None,
            lock=threading.Lock(),
            acceptance=lambda *_: Batch([], [], [], {}),
            accept=lambda _: None,
            let_ingest_go_on=lambda: None,
        )

    def ingest(self, count: int, *, split: Split = Split.TRAIN, late: timedelta = timedelta()) -> None:
        partition = TopicPartition("t", 0)
        start = self.store.next_offsets().get(partition)
        offsets = range(start or 0, (start or 0) + count)
        labels = ("up", "down")
        examples = [
            Example(Position("t", 0, n), f"id-{n}", f"text {n}", labels[n % 2], START - late, START, "s", split)
            for n in offsets
        ]
        self.store.commit(Batch(examples, [], [], {partition: Advance(start, offsets.stop)}))

    def run(self, *, operator: str | None = None) -> Action:
        if operator is not None:
            self.operations.retrain(operator)
        return self.cycle.run(POLICY, Requests()).action

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"relearnd_{name}", labels)

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


def with_lateness(most: str | None) -> Policy:
    return POLICY.model_copy(
        update={"drift": DriftPolicy.model_validate({**POLICY.drift.model_dump(), "max_lateness": most})}
    )


def test_a_backfill_is_drift_unless_the_policy_leaves_late_examples_out(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), drift=[DRIFTED, CALM])
    setup.bootstrap()
    setup.ingest(10)
    setup.ingest(35, late=MONTH)
    setup.ingest(20)
    decision = setup.cycle.run(POLICY, Requests())
    assert (decision.evidence["drift_in_a_row"], decision.evidence["late_examples"]) == (1, 0)
    decision = setup.cycle.run(with_lateness("1d"), Requests())
    assert (decision.evidence["drift_in_a_row"], decision.evidence["late_examples"]) == (0, 35), "at once"
    assert setup.detector.windows == [(40, 40), (40, 30)]
    assert decision.evidence["performance"]["examples"] == 30
    assert decision.evidence["drift"]["current_from_seq"] == 61
    assert decision.evidence["new_examples"] == 65, "they are trained on"
    assert setup.metric("late_examples") == 35


def test_late_examples_that_the_champion_was_trained_on_are_no_reference(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(30)
    setup.ingest(30, late=MONTH)
    assert setup.cycle.run(with_lateness("1d"), Requests()).action is Action.PROMOTE
    left_out = []
    for most in ("1d", "60d"):
        setup.ingest(25)
        left_out.append(setup.cycle.run(with_lateness(most), Requests()).evidence["late_examples"])
    assert left_out == [30, 0]
    assert setup.trainer.runs[0].data.rows["train.parquet"] == 60
    assert setup.detector.windows == [(30, 25), (40, 40)]


def test_a_full_window_begins_before_what_it_leaves_out(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), drift=[DRIFTED])
    setup.bootstrap()
    for late in (timedelta(), MONTH, timedelta()):
        setup.ingest(30, late=late)
    evidence = setup.cycle.run(with_lateness("1d"), Requests()).evidence
    assert setup.detector.windows == [(40, 40)]
    assert (evidence["drift"]["current_from_seq"], evidence["late_examples"]) == (81, 30)
    assert evidence["drifted_examples"] == 70


def test_late_examples_confirm_no_drift_and_say_why_nothing_is_known(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), drift=[DRIFTED])
    setup.bootstrap()
    setup.ingest(15)
    setup.ingest(5, late=MONTH)
    unknown = setup.cycle.run(with_lateness("1d"), Requests())
    assert "not drift: drift has not been measured; drift.max_lateness leaves out 5" in unknown.reasons
    setup.ingest(15)
    for late in range(1, 4):
        seen = setup.cycle.run(with_lateness("1d"), Requests()).evidence
        assert (seen["drift_in_a_row"], seen["late_examples"]) == (1, 5 * late), (
            "the same rows never confirm themselves"
        )
        assert (setup.metric("late_examples"), seen["examples"]) == (5 * late, 90 + 5 * late)
        setup.ingest(5, late=MONTH)
    assert len(setup.detector.windows) == 1
    setup.ingest(1)
    assert setup.cycle.run(with_lateness("1d"), Requests()).evidence["drift_in_a_row"] == 2


def test_a_limit_that_changes_the_reference_alone_is_seen_at_once(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), drift=[DRIFTED, CALM])
    setup.ingest(30)
    setup.ingest(30, late=MONTH)
    setup.run()
    setup.ingest(25)
    assert setup.cycle.run(POLICY, Requests()).evidence["drift_in_a_row"] == 1
    seen = setup.cycle.run(with_lateness("1d"), Requests()).evidence
    assert (seen["drift_in_a_row"], seen["drift"]["reference_examples"], seen["late_examples"]) == (0, 30, 30)
    assert setup.detector.windows == [(40, 25), (30, 25)]


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


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EMFILE, "Too many open files"),
        StoreError("the store failed: Out of Memory Error"),
    ],
)
def test_a_run_whose_folder_cannot_be_filled_has_failed_and_ends_nothing_else(folder: Path, failure: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise failure

    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    setup.store.snapshot = fails  # type: ignore[method-assign, assignment]
    assert setup.run() is Action.TRAIN
    run = setup.store.runs(1)[0]
    assert (run.state, run.detail) == (RunState.FAILED, f"its folder could not be filled: {failure}")
    assert setup.run() is Action.WAIT, "until the time after a failure is over"
    del setup.store.snapshot
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.PROMOTE


def test_a_run_whose_version_finds_no_room_in_the_registry_has_failed(folder: Path) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    setup.registry.add = fails  # type: ignore[method-assign, assignment]
    assert setup.run() is Action.TRAIN
    run = setup.store.runs(1)[0]
    assert (run.state, run.version) == (RunState.FAILED, None)
    assert "No space left" in run.detail


def test_a_promotion_that_cannot_be_written_ends_no_learner_and_is_finished_by_a_later_start(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    setup.registry.move = _read_only  # type: ignore[method-assign, assignment]
    assert setup.run() is Action.TRAIN
    run = setup.store.runs(1)[0]
    assert run.state is RunState.FAILED
    assert "version 1 could not be written" in run.detail
    setup.start().resume()
    assert setup.champion is None
    del setup.registry.move
    setup.start().resume()
    assert setup.champion == 1


def test_drift_that_cannot_be_measured_is_not_the_end_of_learning(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.6), drift=[DriftError("no evidently")])
    setup.bootstrap()
    setup.ingest(30)
    assert setup.run() is Action.WAIT
    assert setup.board.components["drift"].state == "degraded"
    setup.ingest(1)
    assert setup.run(operator="ann: now") is Action.PROMOTE


def test_what_is_not_known_of_a_champion_is_no_number_and_not_what_was_known_of_the_one_before(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.6), drift=[DRIFTED, DriftError("gone")])
    names = ("freshness_seconds", "current_accuracy", "drifted")
    assert all(math.isnan(setup.metric(name) or 0) for name in names), "there is none"
    setup.bootstrap()
    setup.ingest(30)
    assert setup.run(operator="ann: now") is Action.PROMOTE
    assert (setup.metric("drifted"), setup.metric("current_accuracy")) == (1, 0.5)
    setup.run()
    assert all(math.isnan(setup.metric(name) or 0) for name in ("current_accuracy", "drifted")), "nothing came since"


def test_metrics_say_what_the_cycle_saw_decided_and_did(folder: Path) -> None:
    def in_90_seconds(spec: RunSpec) -> RunResult:
        setup.clock.advance(timedelta(seconds=90))
        return finishes(0.5, champion=0.6)(spec)  # type: ignore[operator, return-value]

    setup = Setup(folder, finishes(0.6), in_90_seconds, RunError("out of memory"), drift=[DRIFTED, DriftError("gone")])
    setup.bootstrap()
    setup.ingest(30)
    setup.run()
    assert (setup.metric("drift_score", column="label"), setup.metric("drift_score", column="text")) == (0.4, 0.9)
    assert (setup.metric("drifted"), setup.metric("current_accuracy")) == (1, 0.5)
    assert setup.metric("drift_errors_total") == 0
    setup.ingest(1)
    setup.run(operator="second")
    setup.run(operator="third")
    assert setup.metric("drift_errors_total") == 1
    decisions = {action: setup.metric("decisions_total", action=action) for action in Action}
    assert {action: count for action, count in decisions.items() if count} == {
        Action.TRAIN: 3, Action.PROMOTE: 1, Action.WAIT: 1, Action.REJECT: 1,
    }  # fmt: skip
    assert (setup.metric("runs_total", state="finished"), setup.metric("runs_total", state="failed")) == (2, 1)
    assert (setup.metric("run_seconds_count"), setup.metric("run_seconds_sum")) == (3, 90)
    assert setup.metric("gates_total", gate="non_inferiority", outcome="fail") == 1
    assert setup.metric("gates_total", gate="parity", outcome="pass") == 2
    assert setup.metric("champion_version") == 1


def test_a_champion_whose_files_are_damaged_stops_neither_the_cycle_nor_its_operator(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.6))
    setup.bootstrap()
    setup.scorer.damaged = 1
    setup.ingest(30)
    assert setup.run() is Action.WAIT
    told = setup.board.components["drift"]
    assert (told.state, told.detail) == ("degraded", "weights.safetensors: another sha256")
    assert setup.board.drift is None, "unknown, and not calm"
    setup.ingest(1)
    assert setup.run(operator="ann: now") is Action.PROMOTE
    setup.ingest(30)
    setup.run()
    assert setup.board.components["drift"].state == "ok"


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
    assert setup.store.decisions(1)[0].acted_at is not None, "it will never fit again, so a start must not try"
    setup.cycle.resume()
    assert setup.champion == 1


def test_a_promotion_that_an_operator_overtook_is_given_up_at_the_next_start(folder: Path) -> None:
    setup = Setup(folder, finishes(0.5), finishes(0.7, champion=0.5), finishes(0.9, champion=0.7))
    setup.bootstrap()
    setup.run(operator="second")
    setup.registry.move = _dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        setup.run(operator="third")
    del setup.registry.move
    setup.registry.move("m", replace(setup.registry.aliases("m"), champion=1, previous=None))
    setup.store.record(Decision(START, Action.ROLL_BACK, ["operator"], POLICY.hash, by="operator"))

    setup.cycle.resume()
    assert setup.champion == 1
    rollback, promotion = setup.store.decisions(2)
    assert (promotion.decision.action, promotion.decision.version) == (Action.PROMOTE, 3)
    assert promotion.acted_at is not None
    assert rollback.acted_at is None, "is not the cycle's"


def test_a_promotion_is_finished_whatever_was_decided_after_it(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    setup.registry.move = _dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    del setup.registry.move
    for _ in range(1000):
        setup.store.record(Decision(START, Action.DROP, ["operator"], POLICY.hash, by="operator"))
    setup.cycle.resume()
    assert setup.champion == 1


def test_an_operator_may_train_again_on_what_there_is(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.7, champion=0.6))
    setup.bootstrap()
    assert setup.run(operator="ann: other settings") is Action.PROMOTE
    rows = setup.trainer.runs[-1].data.rows
    assert (rows["train.parquet"], rows["replay.parquet"]) == (30, 30)


def test_a_run_that_was_asked_for_is_started_once_and_also_after_a_restart(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.7, champion=0.6))
    setup.bootstrap()
    setup.operations.retrain("new labels")
    setup.operations.retrain("and once more")
    setup.cycle = setup.start()
    assert setup.run() is Action.PROMOTE
    assert setup.store.runs(1)[0].triggers == ["operator"]
    assert "operator: new labels; and once more" in setup.store.decisions(2)[1].decision.reasons
    assert setup.store.unacted() == []
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.WAIT
    assert setup.start().run(POLICY, Requests()).action is Action.WAIT, "it was heard before the restart"


def test_a_run_is_not_forgotten_when_the_learner_dies_before_it_begins(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.7, champion=0.6))
    setup.bootstrap()
    save, setup.store.save_run = setup.store.save_run, _dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        setup.run(operator="new labels")
    setup.store.save_run = save  # type: ignore[method-assign]
    assert setup.start().run(POLICY, Requests()).action is Action.PROMOTE


def test_what_is_asked_for_during_a_run_is_for_the_next_cycle(folder: Path) -> None:
    def asks_again(spec: RunSpec) -> RunResult:
        setup.operations.retrain("more labels")
        return finishes(0.7, champion=0.6)(spec)  # type: ignore[operator, return-value]

    setup = Setup(folder, finishes(0.6), asks_again, finishes(0.8, champion=0.7))
    setup.bootstrap()
    assert [setup.run(operator="new labels"), setup.run(), setup.run()] == [Action.PROMOTE, Action.PROMOTE, Action.WAIT]


class PutOff:
    """A run for which the disk has no room, or the learner no time."""

    def __init__(self, by: str = "disk") -> None:
        self.by = by

    def __call__(self, _: RunSpec) -> RunResult:
        raise RunPutOff("9% free" if self.by == "disk" else "the learner was stopped", by=self.by)


def test_a_run_that_the_disk_put_off_is_no_failure_and_its_drift_is_not_forgotten(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), PutOff(), finishes(0.8, champion=0.5), drift=[DRIFTED])
    setup.bootstrap()
    for _ in range(2):
        setup.ingest(30)
        action = setup.run()
    run = setup.store.runs(1)[0]
    assert (action, run.state, run.detail) == (Action.TRAIN, RunState.CANCELLED, "9% free")
    assert setup.run() is Action.WAIT, "the cool-down"
    assert setup.store.decisions(1)[0].decision.evidence["failed_runs_in_a_row"] == 0
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.PROMOTE, "although nothing came meanwhile"
    assert setup.store.runs(1)[0].triggers == ["drift"]


def test_what_an_operator_asked_for_comes_back_when_the_disk_put_it_off(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), PutOff(), finishes(0.8, champion=0.6))
    setup.bootstrap()
    setup.run(operator="new labels")
    run = setup.store.runs(1)[0]
    again = setup.store.decisions(1)[0].decision
    assert (again.action, again.by, again.run_id) == (Action.RETRAIN, "disk", run.id)
    assert again.reasons == [
        f"run {run.id} was cancelled: 9% free",
        "it is begun again once there is room and the cool-down is over",
    ]
    setup.cycle = setup.start()
    assert setup.run() is Action.WAIT, "one that fills the disk by itself would fill it again and again"
    setup.operations.pause("to make room")
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.WAIT
    setup.operations.resume("")
    assert setup.run() is Action.PROMOTE
    assert setup.store.runs(1)[0].triggers == ["operator"]
    assert "operator: new labels" in setup.store.decisions(2)[1].decision.reasons
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.WAIT, "once"


def test_what_an_operator_asked_for_begins_again_after_a_stop_of_the_learner(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), PutOff("stop"), finishes(0.8, champion=0.6))
    setup.bootstrap()
    setup.run(operator="new labels")
    run = setup.store.runs(1)[0]
    again = setup.store.decisions(1)[0].decision
    assert (run.state, again.action, again.by) == (RunState.CANCELLED, Action.RETRAIN, "stop")
    assert again.reasons == [
        f"run {run.id} was cancelled: the learner was stopped",
        "it is begun again by the learner's next start, unless learning is paused then",
    ]
    setup.cycle = setup.start()
    setup.operations.pause("for the night")
    assert setup.run() is Action.WAIT
    setup.operations.resume("")
    assert setup.run() is Action.PROMOTE, "no cool-down"
    assert setup.store.runs(1)[0].triggers == ["operator"]
    assert setup.run() is Action.WAIT, "once"


def test_an_operator_who_asks_again_is_given_one_run_at_once(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), PutOff(), finishes(0.8, champion=0.6))
    setup.bootstrap()
    setup.run(operator="new labels")
    assert setup.run(operator="there is room now") is Action.PROMOTE
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.WAIT


def test_a_run_that_an_operator_cancels_does_not_come_back(folder: Path) -> None:
    def cancelled(_: RunSpec) -> RunResult:
        raise RunCancelled("the run was cancelled")

    setup = Setup(folder, finishes(0.6), cancelled)
    setup.bootstrap()
    setup.run(operator="new labels")
    assert setup.store.unacted() == []
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.WAIT


def before(owner: object, method: str, happens: Callable[[], None]) -> None:
    """Something happens whenever it is called, and then it is."""
    original = getattr(owner, method)

    def after(*given: Any, **named: Any) -> Any:
        happens()
        return original(*given, **named)

    setattr(owner, method, after)


def stop_by(setup: Setup, command: str) -> None:
    if command == "pause":
        setup.operations.pause("bad labels")
    else:
        setup.operations.cancel(setup.store.runs(1)[0].id, "bad labels")


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_what_an_operator_stops_while_its_data_is_written_is_not_trained(folder: Path, command: str) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    before(setup.store, "snapshot", lambda: stop_by(setup, command))
    setup.run()
    assert setup.trainer.runs == []
    assert setup.store.runs(1)[0].state is RunState.CANCELLED
    assert setup.registry.versions("m") == []


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_what_an_operator_stops_when_its_worker_has_just_ended_is_not_promoted(folder: Path, command: str) -> None:
    def ended(spec: RunSpec) -> RunResult:
        stop_by(setup, command)
        return finishes(0.6)(spec)

    setup = Setup(folder, ended)
    setup.ingest(60)
    setup.run()
    assert setup.store.runs(1)[0].state is RunState.CANCELLED
    assert setup.registry.versions("m") == []


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_what_an_operator_stops_while_it_is_judged_is_not_promoted(folder: Path, command: str) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    before(setup.registry, "add", lambda: stop_by(setup, command))
    setup.run()
    assert setup.store.runs(1)[0].state is RunState.CANCELLED
    assert setup.registry.aliases("m").champion is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_the_disk_puts_off_while_its_data_is_written_is_no_failure(folder: Path, fails: bool) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.6))
    setup.bootstrap()

    def full() -> None:
        setup.trainer.cancel(setup.store.runs(1)[0].id, RunPutOff("0% free", by="disk"))
        if fails:
            raise StoreError("the store failed: No space left on device")

    before(setup.store, "snapshot", full)
    setup.run(operator="new labels")
    run = setup.store.runs(1)[0]
    assert (run.state, run.detail) == (RunState.CANCELLED, "0% free")
    assert setup.trainer.gave_room_back == [folder / run.id]
    del setup.store.snapshot
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.PROMOTE
    assert setup.store.runs(1)[0].triggers == ["operator"]


def test_an_operator_ends_for_good_what_the_disk_only_puts_off(folder: Path) -> None:
    def both(spec: RunSpec) -> RunResult:
        setup.trainer.cancel(spec.run_id, RunPutOff("9% free", by="disk"))
        stop_by(setup, "cancel")
        setup.trainer.check()
        raise AssertionError("it was cancelled")

    setup = Setup(folder, finishes(0.6), both)
    setup.bootstrap()
    setup.run(operator="new labels")
    assert setup.store.unacted() == []
    setup.clock.advance(timedelta(minutes=2))
    assert setup.run() is Action.WAIT


def test_a_pause_between_the_decision_and_the_run_is_heard(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    before(setup.trainer, "expect", lambda: setup.operations.pause("bad labels"))
    setup.run()
    assert (setup.trainer.runs, setup.store.runs(1)[0].detail) == ([], "learning was paused")


def test_a_schedule_is_still_due_when_the_disk_put_its_run_off(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), PutOff(), finishes(0.8, champion=0.6))
    setup.bootstrap()
    setup.ingest(5)
    policy = POLICY.model_copy(
        update={
            "triggers": POLICY.triggers.model_copy(
                update={"schedule": POLICY.triggers.schedule.model_copy(update={"enabled": True})}
            )
        }
    )
    assert setup.cycle.run(policy, Requests(schedule_due=True)).action is Action.TRAIN
    assert setup.cycle.run(policy, Requests()).action is Action.WAIT, "the cool-down"
    setup.clock.advance(timedelta(minutes=2))
    assert setup.cycle.run(policy, Requests()).action is Action.PROMOTE
    assert setup.store.runs(1)[0].triggers == ["schedule"]
    setup.ingest(5)
    setup.clock.advance(timedelta(minutes=2))
    assert setup.cycle.run(policy, Requests()).action is Action.WAIT, "once"


def test_an_operators_approval_is_waited_for(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6))
    setup.ingest(60)
    asks = POLICY.model_copy(update={"rollout": POLICY.rollout.model_copy(update={"approval": "operator"})})
    assert setup.cycle.run(asks, Requests()).action is Action.ASK
    aliases = setup.registry.aliases("m")
    assert (aliases.champion, aliases.challenger) == (None, 1)


def test_a_champion_that_every_server_refuses_is_rolled_back_and_why_is_a_decision(folder: Path) -> None:
    setup = Setup(folder, finishes(0.6), finishes(0.8, champion=0.5))
    setup.bootstrap()
    setup.ingest(30)
    assert setup.run(operator="ada") is Action.PROMOTE
    stale = ServerReport("a", "m", setup.clock(), 1, setup.registry.aliases("m").generation - 1, [Refusal(2, "torn")])
    policy = POLICY.model_copy(update={"rollout": POLICY.rollout.model_copy(update={"on_refusal": "roll_back"})})
    setup.registry.report(stale)
    assert setup.cycle.run(policy, Requests()).action is Action.WAIT, "said before it saw these aliases"
    setup.registry.report(replace(stale, generation=stale.generation + 1))
    assert setup.run() is Action.WAIT
    setup.registry.move = _read_only  # type: ignore[method-assign, assignment]
    assert setup.cycle.run(policy, Requests()).action is Action.ROLL_BACK
    assert setup.champion == 2
    del setup.registry.move
    decision = setup.cycle.run(policy, Requests())
    assert (decision.action, setup.champion, setup.registry.aliases("m").previous) == (Action.ROLL_BACK, 1, None)
    assert "every server refuses champion 2: a: torn" in decision.reasons
    assert setup.store.decisions(1)[0].acted_at is not None


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def _read_only(*_: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")
