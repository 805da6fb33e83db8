"""Stops ingest when most of what comes is refused or kept aside: a schema has changed, and the topic would drain into dead letters.

Nothing is lost by it: the records stay at the broker. It is the store that remembers, so a restart changes nothing; an operator's
`relearnd ingest resume`, or another `records` in the policy, lets ingest go on.
"""

from collections import deque

import structlog

from daemon.core.ports import Clock, Store
from daemon.policy.schema import RecordsPolicy

log = structlog.get_logger(__name__)

FACT = "ingest_paused"  # {"since", "reason", "records"}: the last is what the policy said of records then


class Breaker:
    """`noted` and `held` are called by the ingest thread, the others by any."""

    def __init__(self, store: Store, records: RecordsPolicy, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._records = records
        self._newest: deque[tuple[int, int]] = deque()
        self._read = self._rejected = 0
        self._reason: str | None = (store.get(FACT) or {}).get("reason")
        self.follow(records)

    @property
    def reason(self) -> str | None:
        """Why ingest pauses; None while it does not."""
        return self._reason

    def held(self) -> bool:
        return self._reason is not None

    def follow(self, records: RecordsPolicy) -> None:
        """The policy as it is now. Ends a pause that began under another one."""
        self._records = records
        if self._reason is not None and (self._store.get(FACT) or {}).get("records") != records.model_dump_json():
            log.info("ingest goes on: the policy's records have changed", action="ingest_resumed")
            self.resume()

    def resume(self) -> None:
        self._store.put(FACT, None)
        self._reason = None

    def noted(self, read: int, rejected: int) -> None:
        """So many records were read, and so many of them refused or kept aside."""
        window = self._records.reject_window
        self._newest.append((read, rejected))
        self._read += read
        self._rejected += rejected
        while self._read - self._newest[0][0] >= window:
            gone_read, gone_rejected = self._newest.popleft()
            self._read -= gone_read
            self._rejected -= gone_rejected
        if self._read >= window and self._rejected > self._records.max_reject_share * self._read:
            self._pause()

    def _pause(self) -> None:
        reason = (
            f"{self._rejected} of the newest {self._read} records were refused or kept aside; records.max_reject_share is "
            f"{self._records.max_reject_share:.0%}. Look at `relearnd dead-letters` and `relearnd quarantine list`, then "
            "`relearnd ingest resume`"
        )
        since = self._clock().isoformat()
        self._store.put(FACT, {"since": since, "reason": reason, "records": self._records.model_dump_json()})
        self._newest.clear()
        self._read = self._rejected = 0
        self._reason = reason
        log.error(f"ingest pauses: {reason}", action="ingest_paused")
