"""What an operator may do to a learner. Each is stored as a decision, with who and why, before it is carried out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from daemon.core.errors import ConflictError, UsageError
from daemon.core.ports import Clock, Registry, Store
from daemon.core.states import Action
from daemon.core.stream import Batch
from daemon.core.types import Aliases, Decision
from daemon.policy import rollout

log = structlog.get_logger(__name__)

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Operations:
    """Called from the control API's threads; one at a time."""

    model: str
    store: Store
    registry: Registry
    clock: Clock
    cancel_run: Callable[..., None]  # a run by its id, or whichever is going
    policy_hash: Callable[[], str]
    changed: Callable[[], None]  # wakes the cycle
    lock: threading.Lock
    acceptance: Callable[[str, int | None, int | None], Batch]  # of ingest: topic, partition, offset to begin at
    accept: Callable[[Batch], None]
    let_ingest_go_on: Callable[[], None]

    def retrain(self, reason: str) -> None:
        """Ask the cycle for a run; cool-down and budget do not hold it back, a pause does. Survives a restart."""
        with self.lock:
            if self.store.get("paused"):
                raise ConflictError("learning is paused: `relearnd resume` first, then retrain")
            self._record(Action.RETRAIN, reason, request=reason or "asked for")
        self.changed()  # a cycle acts on it, the next one or the first after a restart

    def promote(self, number: int, reason: str) -> Aliases:
        """Make a version the champion, gates or not. The former champion becomes the previous one."""
        with self.lock:
            aliases = self.registry.aliases(self.model)
            if aliases.champion == number:
                raise UsageError(f"version {number} is the champion already")
            moved = rollout.promoted(aliases, number, self.clock(), self._why(reason))
            return self._move(Action.PROMOTE, moved, number, reason)

    def rollback(self, number: int | None, reason: str) -> Aliases:
        """Back to the previous champion, or to `number`."""
        with self.lock:
            aliases = self.registry.aliases(self.model)
            moved = rollout.rolled_back(aliases, number, self.clock(), self._why(reason))
            return self._move(Action.ROLL_BACK, moved, moved.champion, reason)

    def canary(self, number: int | None, share: float, reason: str) -> Aliases:
        """`number` answers this share of the requests; None ends that."""
        with self.lock:
            aliases = self.registry.aliases(self.model)
            moved = rollout.canaried(aliases, number, share, self.clock(), self._why(reason))
            what = "the champion answers everything" if number is None else f"{100 * share:.3g}% of the requests"
            return self._move(Action.CANARY, moved, number, f"{what}; {reason}" if reason else what)

    def shadow(self, number: int | None, reason: str) -> Aliases:
        """`number` is compared with the champion on live requests, unheard; None ends that."""
        with self.lock:
            aliases = self.registry.aliases(self.model)
            moved = rollout.shadowed(aliases, number, self.clock(), self._why(reason))
            return self._move(Action.SHADOW, moved, number, reason or ("off" if number is None else ""))

    def pause(self, reason: str) -> None:
        """No new runs, and the one going is cancelled. Ingest and serving go on. Survives a restart."""
        with self.lock:
            number = self._record(Action.PAUSE, reason)
            self.store.put("paused", {"since": self.clock().isoformat(), "reason": reason})
            self.cancel_run()
            self._done(number)

    def resume(self, reason: str) -> None:
        with self.lock:
            if not self.store.get("paused"):
                raise UsageError("learning is not paused")
            number = self._record(Action.RESUME, reason)
            self.store.put("paused", None)
            self._done(number)

    def accept_log(
        self, topic: str, partition: int | None, begin_at: int | None, reason: str
    ) -> dict[str, Sequence[str]]:
        """Read partitions again that ingest refuses, as they are now; says which."""
        with self.lock:
            batch = self.acceptance(topic, partition, begin_at)
            what = ", ".join(f"{each} from offset {advance.next}" for each, advance in batch.advances.items())
            number = self._record(Action.ACCEPT_LOG, f"{what}; {reason}" if reason else what)
            self.accept(batch)
            self._done(number)
        return {"accepted": [str(each) for each in batch.advances]}

    def resume_ingest(self, reason: str) -> None:
        """Read on after the breaker stopped ingest."""
        with self.lock:
            if not self.store.get("ingest_paused"):
                raise UsageError("ingest is not paused")
            number = self._record(Action.RESUME_INGEST, reason)
            self.let_ingest_go_on()
            self._done(number)

    def cancel(self, run_id: str, reason: str) -> None:
        """Stop the run that is going."""
        with self.lock:
            run = self.store.run(run_id)
            if run.state.final:
                raise UsageError(f"run {run_id} has ended already: {run.state}")
            number = self._record(Action.CANCEL, reason, run_id=run_id)
            self.cancel_run(run_id)
            self._done(number)

    def _move(self, action: Action, moved: Aliases, version: int | None, reason: str) -> Aliases:
        if version is not None:
            self.registry.version(self.model, version)
        number = self._record(action, reason, version=version)
        aliases = self.registry.move(self.model, moved)
        self._done(number)
        return aliases

    def _record(
        self, action: Action, reason: str, *, version: int | None = None, run_id: str | None = None, **evidence: str
    ) -> int:
        what = " ".join(str(part) for part in (action, version, run_id) if part is not None)
        log.info(f"operator: {what}: {reason or 'no reason given'}", action="operator_" + action)
        decision = Decision(
            at=self.clock(),
            action=action,
            reasons=[self._why(reason)],
            policy_hash=self.policy_hash(),
            by=OPERATOR,
            run_id=run_id,
            version=version,
            evidence=evidence,
        )
        return self.store.record(decision)

    def _done(self, number: int) -> None:
        self.store.acted(number, self.clock())
        self.changed()

    @staticmethod
    def _why(reason: str) -> str:
        return f"operator: {reason}" if reason else "operator"
