"""What the cycle is asked to do, coalesced: however often something is due, the next cycle hears of it once."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requests:
    """What came in since the last cycle."""

    schedule_due: bool = False
    operator: str | None = None  # who asked for a run, and why


class Inbox:
    """Filled by the scheduler and by operators from any thread, emptied by the cycle loop."""

    def __init__(self) -> None:
        self._woken = threading.Condition()
        self._observe = False
        self._schedule = False
        self._operator: str | None = None

    def observe(self) -> None:
        self._put(observe=True)

    def schedule(self) -> None:
        self._put(observe=True, schedule=True)

    def operator(self, request: str) -> None:
        self._put(observe=True, operator=request)

    def _put(self, *, observe: bool, schedule: bool = False, operator: str | None = None) -> None:
        with self._woken:
            self._observe |= observe
            self._schedule |= schedule
            self._operator = operator or self._operator
            self._woken.notify_all()

    def take(self, timeout: float) -> Requests | None:
        """Everything asked for since the last take; None when nothing was within `timeout` seconds."""
        with self._woken:
            if not self._woken.wait_for(lambda: self._observe, timeout):
                return None
            requests = Requests(self._schedule, self._operator)
            self._observe, self._schedule, self._operator = False, False, None
            return requests
