"""Ends the run that is going when the disk has no room for it any more, as `relearnd pause` would."""

from collections.abc import Callable

import structlog

from daemon.core.errors import RunPutOff, StoreError
from daemon.core.ports import Clock, Store
from daemon.core.states import Action, RunState
from daemon.core.types import DISK, Decision

log = structlog.get_logger(__name__)


class RoomForRuns:
    """`look` is called by one thread now and then. A run that is judged already is left to end: it writes little more."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        lack: Callable[[], str],
        cancel_run: Callable[[str, RunPutOff], None],
        policy_hash: Callable[[], str],
    ) -> None:
        """`lack`: why no run can go on; empty where one can."""
        self._store = store
        self._clock = clock
        self._lack = lack
        self._cancel_run = cancel_run
        self._policy_hash = policy_hash
        self._cancelled: str | None = None  # the newest run of which that was stored

    def look(self) -> None:
        lack = self._lack()
        if not lack:
            return
        try:
            newest = next(iter(self._store.runs(1)), None)
            if newest is None or newest.state is not RunState.TRAINING or newest.id == self._cancelled:
                return
            self._cancel_run(newest.id, RunPutOff(lack, by=DISK))
            self._decide(newest.id, lack)
            self._cancelled = newest.id
        except StoreError as error:  # that there is no room may be why
            log.error(f"that a run is cancelled could not be stored: {error}", action="cancel_not_stored")

    def _decide(self, run_id: str, lack: str) -> None:
        now, reasons = self._clock(), [f"{DISK}: {lack}"]
        decision = Decision(now, Action.CANCEL, reasons, self._policy_hash(), by=DISK, run_id=run_id)
        self._store.acted(self._store.record(decision), now)
