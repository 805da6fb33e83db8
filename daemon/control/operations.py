"""What an operator may do to a learner. Each is stored as a decision, with who and why, before it is carried out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from daemon.core.errors import ConflictError, UsageError
from daemon.core.ports import Clock, Registry, Store
from daemon.core.states import Action
from daemon.core.types import Aliases, Decision
from daemon.policy import rollout

log = structlog.get_logger(__name__)

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Operations:
    """Called from the control API's threads; one at a time. `ask_for_run` and `cancel_run` reach the cycle."""

    model: str
    store: Store
    registry: Registry
    clock: Clock
    ask_for_run: Callable[[str], None]
    cancel_run: Callable[[], None]
    policy_hash: Callable[[], str]
    changed: Callable[[], None]  # told after aliases or the pause have changed
    lock: threading.Lock
    accept: Callable[[str, int | None, int | None], Sequence[str]]  # of ingest: topic, partition, offset to begin at
    let_ingest_go_on: Callable[[], None]

    def retrain(self, reason: str) -> None:
        """Ask the cycle for a run; cool-down and budget do not hold it back, a pause does."""
        if self.store.get("paused"):
            raise ConflictError("learning is paused: `relearnd resume` first, then retrain")
        self.ask_for_run(reason or "asked for")

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
            accepted = self.accept(topic, partition, begin_at)
        log.warning(
            f"operator: {', '.join(accepted)} accepted as they are now: {reason or 'no reason given'}",
            action="log_accepted",
        )
        return {"accepted": accepted}

    def resume_ingest(self, reason: str) -> None:
        """Read on after the breaker stopped ingest."""
        with self.lock:
            if not self.store.get("ingest_paused"):
                raise UsageError("ingest is not paused")
            self.let_ingest_go_on()
        log.info(f"operator: ingest goes on: {reason or 'no reason given'}", action="ingest_resumed")

    def cancel(self, run_id: str) -> None:
        """Stop the run that is going."""
        run = self.store.run(run_id)
        if run.state.final:
            raise UsageError(f"run {run_id} has ended already: {run.state}")
        self.cancel_run()

    def _move(self, action: Action, moved: Aliases, version: int | None, reason: str) -> Aliases:
        if version is not None:
            self.registry.version(self.model, version)
        number = self._record(action, reason, version)
        aliases = self.registry.move(self.model, moved)
        self._done(number)
        return aliases

    def _record(self, action: Action, reason: str, version: int | None = None) -> int:
        log.info(f"operator: {action} {version or ''}: {reason or 'no reason given'}", action="operator_" + action)
        decision = Decision(
            at=self.clock(),
            action=action,
            reasons=[self._why(reason)],
            policy_hash=self.policy_hash(),
            by=OPERATOR,
            version=version,
        )
        return self.store.record(decision)

    def _done(self, number: int) -> None:
        self.store.acted(number, self.clock())
        self.changed()

    @staticmethod
    def _why(reason: str) -> str:
        return f"operator: {reason}" if reason else "operator"
