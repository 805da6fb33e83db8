"""Stops ingest when most of what comes is refused or kept aside, or a share that the policy watches passes its limit: a schema
has changed, and the topic would drain into dead letters, or teach what nobody wanted.

Nothing is lost by it: the records stay at the broker. It is the store that remembers, so a restart changes nothing; an operator's
`relearnd ingest resume`, or another `records` in the policy, lets ingest go on. Counting begins anew with a restart: until a
window of records has been read again nothing fails.
"""

from collections import deque
from collections.abc import Mapping

import structlog

from daemon.core.ports import Clock, Store
from daemon.core.stream import Tally
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics

log = structlog.get_logger(__name__)

FACT = "ingest_paused"  # {"since", "reason", "records"}: the last is what the policy said of records then
REJECTS = "records.max_reject_share"
NULLS = "records.quality.max_null_share."  # before the field's name
NEW_LABELS = "records.quality.max_new_label_share"


class Breaker:
    """`noted` and `held` are called by the ingest thread, the others by any. A check is named as its limit is in the policy."""

    def __init__(self, store: Store, records: RecordsPolicy, clock: Clock, metrics: LearnerMetrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._records = records
        self._windows: dict[str, _Window] = {}
        self._failing: Mapping[str, str] = {}
        self._reason: str | None = (store.get(FACT) or {}).get("reason")
        self.follow(records)

    @property
    def reason(self) -> str | None:
        """Why ingest pauses; None while it does not."""
        return self._reason

    @property
    def warning(self) -> str:
        """Which checks fail although ingest goes on; empty for none."""
        return "; ".join(self._failing.values())

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

    def noted(self, read: int, rejected: int, tallies: Mapping[str, Tally] | None = None) -> None:
        """So many records were read, so many of them refused or kept aside; and what the other checks found among them."""
        records = self._records  # `follow` may put others in their place meanwhile
        limits = _limits(records)
        self._windows = {check: self._windows.get(check) or _Window() for check in limits}
        for check, tally in {REJECTS: Tally(rejected, read), **(tallies or {})}.items():
            if check in limits:
                self._windows[check].add(tally, records.reject_window)
        self._metrics.check_share.clear()  # also of what the policy watches no more
        for check, window in self._windows.items():
            self._metrics.check_share.labels(check).set(window.share)
        failing = {
            check: self._said(check, limit) for check, limit in limits.items() if self._windows[check].exceeds(limit)
        }
        for check in failing.keys() - self._failing.keys():
            self._metrics.failed_checks.labels(check).inc()
            log.warning(f"a data-quality check fails: {failing[check]}", action="check_failed", check=check)
        self._failing = failing
        if REJECTS in failing or (failing and records.quality.failed_check == "pause"):
            self._pause(records)

    def _said(self, check: str, limit: float) -> str:
        window = self._windows[check]
        field = check.removeprefix(NULLS)
        found, cure = {
            REJECTS: ("were refused or kept aside", "Look at `relearnd dead-letters` and `relearnd quarantine list`"),
            NEW_LABELS: (
                "have a label that is new",
                "List it in task.labels if it is meant, or mend what writes the topic",
            ),
        }.get(check, (f"have no '{field}'", f"Mend what writes the topic, or look at kafka.fields.{field}"))
        return f"{window.bad} of the newest {window.all} records {found}; {check} is {limit:.4g} ({limit:.1%}). {cure}"

    def _pause(self, records: RecordsPolicy) -> None:
        reason = f"{self.warning}; then `relearnd ingest resume`"
        since = self._clock().isoformat()
        self._store.put(FACT, {"since": since, "reason": reason, "records": records.model_dump_json()})
        self._windows, self._failing = {}, {}
        self._reason = reason
        log.error(f"ingest pauses: {reason}", action="ingest_paused")


def _limits(records: RecordsPolicy) -> dict[str, float]:
    quality = records.quality
    limits = {REJECTS: records.max_reject_share, NEW_LABELS: quality.max_new_label_share}
    limits |= {NULLS + field: share for field, share in quality.max_null_share.items()}
    return {check: limit for check, limit in limits.items() if limit < 1}


class _Window:
    """The newest records, as few batches as hold so many."""

    def __init__(self) -> None:
        self._newest: deque[Tally] = deque()
        self._size = 0
        self.all = self.bad = 0

    @property
    def share(self) -> float:
        return self.bad / self.all if self.all else 0.0

    def add(self, tally: Tally, size: int) -> None:
        self._size = size
        if not tally.all:
            return
        self._newest.append(tally)
        self.all += tally.all
        self.bad += tally.bad
        while self.all - self._newest[0].all >= size:
            gone = self._newest.popleft()
            self.all -= gone.all
            self.bad -= gone.bad

    def exceeds(self, limit: float) -> bool:
        """Never before it is full."""
        return 0 < self._size <= self.all and self.bad > limit * self.all
