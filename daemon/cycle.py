"""One learning cycle, top to bottom: observe, assess, decide, train, judge, promote.

Only ports and the policy are known here. Every decision is stored before it is acted on; `resume` finishes, after a crash,
what was decided and not done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import structlog

from daemon.core.errors import (
    ArtefactError,
    ConflictError,
    NotFoundError,
    RelearndError,
    RunCancelled,
    RunError,
    RunPutOff,
    StoreError,
)
from daemon.core.facts import Facts
from daemon.core.ports import Clock, DriftDetector, Registry, Scorer, Store, Trainer
from daemon.core.states import Action, RunState, Split, TriggerKind
from daemon.core.types import (
    Decision,
    Lineage,
    ModelVersion,
    Progress,
    Run,
    RunResult,
    RunSpec,
    StoredDecision,
)
from daemon.observation import Listener, Observation, Observer
from daemon.policy import gates, retrain, rollout
from daemon.policy.schema import Policy
from daemon.runtime.inbox import Requests

log = structlog.get_logger(__name__)

_RUNS_LOOKED_AT = 200


@dataclass(frozen=True, slots=True)
class Ports:
    store: Store
    registry: Registry
    detector: DriftDetector
    scorer: Scorer
    trainer: Trainer
    clock: Clock


@dataclass(frozen=True, slots=True)
class Subject:
    """Which model is kept fresh, what it is made from, and where its runs lie."""

    model: str
    task: str
    base: str
    labels: tuple[str, ...]
    max_tokens: int
    registry: Path
    runs: Path
    code_version: str
    anchor_sha256: str = ""  # see RunSpec


class Watcher(Listener, Protocol):
    """Who is told what the cycle is doing. Must not raise."""

    def progressed(self, progress: Progress) -> None: ...
    def decided(self, decision: Decision) -> None: ...
    def run_ended(self, run: Run) -> None: ...
    def promoted(self, version: ModelVersion) -> None: ...


PrepareFolder = Callable[[RunSpec, Policy], Path]


class Cycle:
    """Runs on one thread. `prepare` writes a run's request into its folder and returns that folder."""

    def __init__(self, ports: Ports, subject: Subject, watcher: Watcher, prepare: PrepareFolder) -> None:
        self._ports = ports
        self._subject = subject
        self._watcher = watcher
        self._prepare = prepare
        self._observer = Observer(ports.store, ports.scorer, ports.detector, ports.clock, watcher)
        self._schedule_put_off = False  # what an operator asked for and the disk put off is in the store

    def run(self, policy: Policy, requests: Requests) -> Decision:
        """One cycle. Returns the last decision it took: to wait, or what became of the challenger."""
        try:
            observation = self._observer.observe(self._champion(), policy)
            asked = self._asked(policy)
            facts = self._assess(observation, requests, asked)
            decision = retrain.decide(facts, policy)
            number = self._record(decision)
            run = self._begin(number, decision, observation) if decision.action is Action.TRAIN else None
            if decision.action is Action.ROLL_BACK:
                self._roll_back(decision)
            for heard in (*(request.number for request in asked), number):
                self._done(heard)
            return self._train_and_judge(run, decision, observation, policy) if run else decision
        finally:
            self._watcher.enter("idle")

    # --- assess ---------------------------------------------------------------------------------------------------

    def _asked(self, policy: Policy) -> Sequence[StoredDecision]:
        """What operators decided that no cycle has heard yet. As it is in the store, a restart changes nothing."""
        store = self._ports.store
        return retrain.heard(store.unacted(), self._ports.clock(), policy, paused=bool(store.get("paused")))

    def _assess(self, observation: Observation, requests: Requests, asked: Sequence[StoredDecision]) -> Facts:
        store, registry, now = self._ports.store, self._ports.registry, self._ports.clock()
        aliases = registry.aliases(self._subject.model)
        servers = [report for report in registry.servers(self._subject.model) if not report.silent(now)]
        runs = store.runs(_RUNS_LOOKED_AT)
        ended = [run for run in runs if run.state.final]
        finished = [run for run in ended if run.state is RunState.FINISHED]
        failed = 0
        while failed < len(ended) and ended[failed].state in (RunState.FAILED, RunState.ABANDONED):
            failed += 1
        return Facts(
            now=now,
            examples=observation.counts.by_split.get(Split.TRAIN, 0),
            new_examples=store.examples_after(finished[0].data_cut if finished else 0, split=Split.TRAIN),
            champion=observation.champion.number if observation.champion else None,
            last_run_finished_at=ended[0].finished_at if ended else None,
            failed_runs_in_a_row=failed,
            runs_last_day=sum(run.created_at > now - timedelta(days=1) for run in runs),
            drift=observation.drift,
            drift_in_a_row=observation.drift_in_a_row,
            drifted_examples=store.examples_after(observation.drifted_from - 1, split=Split.TRAIN),
            performance=observation.performance,
            late_examples=observation.late_examples,
            schedule_due=requests.schedule_due or self._schedule_put_off,
            operator_request="; ".join(stored.decision.evidence["request"] for stored in asked) or None,
            paused=bool(store.get("paused")),
            previous=aliases.previous,
            servers=len(servers),
            refusals={report.server: refusal.reason for report, refusal in rollout.refusals(servers, aliases)},
        )

    # --- train ----------------------------------------------------------------------------------------------------

    def _begin(self, number: int, decision: Decision, seen: Observation) -> Run:
        now = self._ports.clock()
        run = Run(
            id=f"{now:%Y%m%d-%H%M%S}-{number}",
            state=RunState.TRAINING,
            created_at=now,
            triggers=[trigger.kind for trigger in decision.triggers],
            parent=seen.champion.number if seen.champion else None,
            data_cut=seen.counts.last_seq,
        )
        self._ports.trainer.expect(run.id)
        self._ports.store.save_run(run)
        self._schedule_put_off = False
        log.info(f"run {run.id} starts: {'; '.join(decision.reasons)}", action="run_started", run=run.id)
        return run

    def _train_and_judge(self, run: Run, decision: Decision, seen: Observation, policy: Policy) -> Decision:
        try:
            spec, result, folder = self._train(run, seen, policy)
            self._watcher.enter("judging", run_id=run.id)
            self._ports.store.save_run(replace(run, state=RunState.JUDGING))
            return self._judge(run, spec, result, folder, policy)
        except RunPutOff as error:
            self._ports.trainer.give_room_back(self._subject.runs / run.id)
            self._ask_again(run, decision, error)
            return self._ended_without_version(run, RunState.CANCELLED, error, decision)
        except RunCancelled as error:
            return self._ended_without_version(run, RunState.CANCELLED, error, decision)
        except (RunError, ArtefactError, ConflictError, NotFoundError) as error:
            return self._ended_without_version(run, RunState.FAILED, error, decision)

    def _ask_again(self, run: Run, decision: Decision, error: RunPutOff) -> None:
        """What no cycle would find out by itself: drift, volume and the like are still there to be seen."""
        self._schedule_put_off = TriggerKind.SCHEDULE in run.triggers
        again = retrain.asked_again(decision, run.id, error, self._ports.clock())
        if again:
            self._ports.store.record(again)

    def _train(self, run: Run, seen: Observation, policy: Policy) -> tuple[RunSpec, RunResult, Path]:
        self._watcher.enter("training", run_id=run.id, triggers=tuple(run.triggers))
        try:
            spec, folder = self._prepared(run, seen, policy)
        except (OSError, StoreError) as error:
            self._stop_if_asked()  # the disk that is full may be why it was
            raise RunError(f"its folder could not be filled: {error}") from error
        self._stop_if_asked()
        return spec, self._ports.trainer.train(folder, spec, self._watcher.progressed), folder

    def _stop_if_asked(self) -> None:
        """Raises RunCancelled. Learning may have been paused before anybody knew of the run."""
        self._ports.trainer.check()
        if self._ports.store.get("paused"):
            raise RunCancelled("learning was paused")

    def _prepared(self, run: Run, seen: Observation, policy: Policy) -> tuple[RunSpec, Path]:
        folder = self._subject.runs / run.id
        data = self._ports.store.snapshot(
            folder / "data",
            data_cut=run.data_cut,
            recent_after=self._recent_after(seen),
            train_limit=policy.training.max_examples,
            replay_limit=policy.training.max_examples,
            holdout_limit=policy.gates.max_holdout,
            seed=policy.training.seed,
            run_id=run.id,
        )
        spec = RunSpec(
            run_id=run.id,
            model=self._subject.model,
            task=self._subject.task,
            created_at=run.created_at,
            base=self._subject.base,
            registry=str(self._subject.registry),
            labels=self._labels(seen),
            max_tokens=self._subject.max_tokens,
            parent=run.parent,
            seed=policy.training.seed,
            policy_hash=policy.hash,
            triggers=run.triggers,
            data=data,
            anchor_sha256=self._subject.anchor_sha256,
        )
        return spec, self._prepare(spec, policy)

    def _recent_after(self, seen: Observation) -> int:
        """The seq after which examples count as new: the champion's data cut.

        When nothing is new since, an operator asked for the run, to train again on what there is: then the newer half
        counts as new, and challenger and champion can still be compared on recent and on past examples.
        """
        cut = seen.champion.lineage.data_cut if seen.champion else 0
        return cut if self._ports.store.examples_after(cut, split=Split.TRAIN) else seen.counts.last_seq // 2

    def _labels(self, seen: Observation) -> tuple[str, ...]:
        """The parent's labels keep their places; then those declared, then those that came with the data."""
        known = [*(seen.champion.labels if seen.champion else ()), *self._subject.labels, *sorted(seen.counts.by_label)]
        return tuple(dict.fromkeys(known))

    # --- judge and promote ----------------------------------------------------------------------------------------

    def _judge(self, run: Run, spec: RunSpec, result: RunResult, folder: Path, policy: Policy) -> Decision:
        self._stop_if_asked()
        verdict = gates.judge(result, policy, parent=run.parent)
        now = self._ports.clock()
        lineage = self._lineage(run, spec, result)
        try:
            version = self._ports.registry.add(spec, result, folder, lineage=lineage, created_at=now)
        except OSError as error:
            raise RunError(f"its version could not be stored: {error}") from error
        decision = Decision(
            at=now,
            action=rollout.after_verdict(verdict, policy),
            reasons=verdict.reasons,
            policy_hash=policy.hash,
            run_id=run.id,
            version=version.number,
            verdict=verdict,
            evidence={"parent": run.parent, **gates.judged_from(result)},
        )
        self._stop_if_asked()
        number = self._record(decision)
        self._watcher.enter("promoting", run_id=run.id)
        try:
            self._act_on(number, decision)
        except OSError as error:  # as after a crash here, the next start finishes it
            raise RunError(f"what follows for version {version.number} could not be written: {error}") from error
        self._end(
            replace(
                run,
                state=RunState.FINISHED,
                version=version.number,
                outcome=verdict.outcome,
                detail=gates.sum_up(verdict),
            )
        )
        return decision

    def _act_on(self, number: int, decision: Decision) -> None:
        """Carry out what follows a verdict. What does not fit any more never will: it counts as done, and is raised."""
        try:
            self._carry_out(decision)
        except (ConflictError, NotFoundError):
            self._done(number)
            raise
        self._done(number)

    def _carry_out(self, decision: Decision) -> None:
        """Move the aliases as the decision says. Safe to repeat."""
        if decision.version is None:
            return
        model, registry = self._subject.model, self._ports.registry
        aliases = registry.aliases(model)
        if aliases.champion == decision.version:
            return
        if aliases.champion != decision.evidence["parent"]:
            raise ConflictError(
                f"version {decision.version} was judged against {decision.evidence['parent']}, but the champion is "
                f"{aliases.champion} now; it keeps its number: promote it by hand or wait for the next run"
            )
        move = {
            Action.PROMOTE: rollout.promoted,
            Action.ASK: rollout.challenged,
            Action.REJECT: rollout.rejected,
        }[decision.action]
        registry.move(model, move(aliases, decision.version, self._ports.clock(), f"run {decision.run_id}"))
        if decision.action is Action.PROMOTE:
            log.info(
                f"promoted {model} {decision.version} over {aliases.champion or 'nothing'}",
                action="promoted",
                version=decision.version,
            )
            self._watcher.promoted(registry.version(model, decision.version))

    def _roll_back(self, decision: Decision) -> None:
        """A crash before it is carried out leaves nothing to finish: the servers still say the same to the next cycle."""
        model, registry = self._subject.model, self._ports.registry
        aliases = registry.aliases(model)
        if aliases.champion != decision.evidence["champion"]:
            return
        back = rollout.rolled_back(aliases, decision.version, self._ports.clock(), decision.reasons[0])
        try:
            registry.move(model, back)
        except ConflictError as error:
            log.warning(f"not rolled back, somebody moved the aliases first: {error}", action="roll_back_dropped")
        except OSError as error:
            log.error(f"not rolled back, the next cycle tries again: {error}", action="roll_back_failed")
        else:
            log.error(f"rolled back to {model} {decision.version}: {decision.reasons[0]}", action="rolled_back")

    def resume(self) -> None:
        """Once, at start: mark runs that died with us, and finish a promotion that was decided and not carried out."""
        for run in self._ports.store.abandon_runs(self._ports.clock()):
            log.warning(f"run {run.id} died with the learner; abandoned", action="run_abandoned", run=run.id)
            self._watcher.run_ended(run)
        for pending in self._ports.store.unacted():
            if pending.decision.verdict:
                self._finish(pending)

    def _finish(self, pending: StoredDecision) -> None:
        what = f"decision {pending.number}: {pending.decision.action}"
        try:
            self._act_on(pending.number, pending.decision)
            log.info(f"finished {what}", action="decision_resumed")
        except (ConflictError, NotFoundError, ArtefactError, OSError) as error:
            log.error(f"could not finish {what}: {error}", action="decision_not_resumed")

    # --- small things ---------------------------------------------------------------------------------------------

    def _champion(self) -> ModelVersion | None:
        number = self._ports.registry.aliases(self._subject.model).champion
        return None if number is None else self._ports.registry.version(self._subject.model, number)

    def _lineage(self, run: Run, spec: RunSpec, result: RunResult) -> Lineage:
        return Lineage(
            run_id=run.id,
            parent=run.parent,
            triggers=run.triggers,
            policy_hash=spec.policy_hash,
            seed=spec.seed,
            data_sha256=spec.data.sha256,
            data_cut=run.data_cut,
            examples=result.training.examples,
            newest_occurred_at=spec.data.newest_occurred_at,
            code_version=self._subject.code_version,
            packages=result.packages,
        )

    def _record(self, decision: Decision) -> int:
        number = self._ports.store.record(decision)
        self._watcher.decided(decision)
        return number

    def _done(self, number: int) -> None:
        self._ports.store.acted(number, self._ports.clock())

    def _end(self, run: Run) -> None:
        run = replace(run, finished_at=self._ports.clock())
        self._ports.store.save_run(run)
        self._watcher.run_ended(run)

    def _ended_without_version(self, run: Run, state: RunState, error: RelearndError, decision: Decision) -> Decision:
        log.warning(f"run {run.id} {state}: {error}", action="run_" + state, run=run.id)
        self._end(replace(run, state=state, detail=str(error)))
        return decision
