"""What the cycle is asked to do, coalesced: however often something is due, the next cycle hears of it once."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requests:
    """What came in since the last cycle."""

    schedule_due: bool = False


class Inbox:
    """Filled by the scheduler and by operators from any thread, emptied by the cycle loop.

    What an operator asks for is in the store, where it survives a restart; here they only wake the cycle.
    """

    def __init__(self) -> None:
        self._woken = threading.Condition()
        self._observe = False
        self._schedule = False

    def observe(self) -> None:
        self._put(observe=True)

    def schedule(self) -> None:
        self._put(observe=True, schedule=True)

    def put_back(self, requests: Requests) -> None:
        """For the next cycle, because one that was to act on them could not. It wakes nobody."""
        self._put(observe=False, schedule=requests.schedule_due)

    def _put(self, *, observe: bool, schedule: bool = False) -> None:
        with self._woken:
            self._observe |= observe
            self._schedule |= schedule
            self._woken.notify_all()

    def take(self, timeout: float) -> Requests | None:
        """Everything asked for since the last take; None when nothing was within `timeout` seconds."""
        with self._woken:
            if not self._woken.wait_for(lambda: self._observe, timeout):
                return None
            requests = Requests(self._schedule)
            self._observe, self._schedule = False, False
            return requests
