"""The policy's clock, on APScheduler. Its jobs only put requests into the inbox: no work, no I/O, nothing to overrun."""

from datetime import UTC, datetime

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.job import Job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from daemon.policy.schema import Policy
from daemon.runtime.inbox import Inbox

log = structlog.get_logger(__name__)


class PolicyScheduler:
    """Wakes the cycle at the policy's interval, and says when its cron schedule is due."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._following: tuple[object, ...] | None = None
        # A missed alarm rings once, late, and not once for each time it was missed.
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = BackgroundScheduler(timezone=UTC, job_defaults=defaults)
        self._scheduler.add_listener(_log_error, EVENT_JOB_ERROR)

    def start(self) -> None:
        self._scheduler.start()

    def follow(self, policy: Policy) -> None:
        """Ring as this policy says from now on; nothing happens when its times are those followed already."""
        schedule = policy.triggers.schedule
        times = (policy.drift.observe_every, schedule.enabled, schedule.cron)
        if times == self._following:
            return
        first = self._following is None
        self._following = times
        interval = IntervalTrigger(seconds=policy.drift.observe_every.total_seconds(), timezone=UTC)
        at_once = {"next_run_time": datetime.now(UTC)} if first else {}
        self._scheduler.add_job(self._inbox.observe, interval, id="observe", replace_existing=True, **at_once)
        if self.job("retrain"):
            self._scheduler.remove_job("retrain")
        if schedule.enabled:
            cron = CronTrigger.from_crontab(schedule.cron, timezone=UTC)
            self._scheduler.add_job(self._inbox.schedule, cron, id="retrain")

    def job(self, name: str) -> Job | None:
        """The alarm called "observe" or "retrain", with when it rings next."""
        return self._scheduler.get_job(name)

    def stop(self) -> None:
        self._scheduler.shutdown(wait=False)


def _log_error(event: JobExecutionEvent) -> None:
    log.error(f"scheduled job {event.job_id} failed: {event.exception}", action="schedule_failed", job=event.job_id)
