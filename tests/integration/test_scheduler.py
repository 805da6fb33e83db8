"""The policy's clock rings on the real APScheduler."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from daemon.policy.schema import DriftPolicy, Policy, ScheduleTrigger, Triggers
from daemon.runtime.inbox import Inbox
from daemon.runtime.scheduler import PolicyScheduler

PATIENCE = 10.0  # seconds, far more than any alarm here needs


def policy(observe_every: timedelta, *, cron: str | None = None) -> Policy:
    schedule = ScheduleTrigger(enabled=cron is not None, cron=cron or "0 3 * * sun")
    return Policy(drift=DriftPolicy(observe_every=observe_every), triggers=Triggers(schedule=schedule))


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def scheduler(inbox: Inbox) -> Iterator[PolicyScheduler]:
    scheduler = PolicyScheduler(inbox)
    scheduler.start()
    yield scheduler
    scheduler.stop()


def test_observations_come_at_once_and_again(scheduler: PolicyScheduler, inbox: Inbox) -> None:
    scheduler.follow(policy(timedelta(milliseconds=50)))
    for _ in range(3):
        requests = inbox.take(PATIENCE)
        assert requests is not None
        assert not requests.schedule_due


def test_a_changed_policy_is_followed_and_the_same_one_changes_nothing(
    scheduler: PolicyScheduler, inbox: Inbox
) -> None:
    hourly = policy(timedelta(hours=1))
    scheduler.follow(hourly)
    assert inbox.take(PATIENCE) is not None
    scheduler.follow(hourly)
    assert inbox.take(0.2) is None, "following the same policy again must not ring"
    scheduler.follow(policy(timedelta(milliseconds=50)))
    assert inbox.take(PATIENCE) is not None


def test_the_cron_schedule_is_said_to_be_due(scheduler: PolicyScheduler, inbox: Inbox) -> None:
    scheduler.follow(policy(timedelta(hours=1), cron="* * * * *"))
    job = scheduler.job("retrain")
    assert job is not None
    inbox.take(PATIENCE)
    job.modify(next_run_time=job.next_run_time - timedelta(minutes=2))
    requests = inbox.take(PATIENCE)
    assert requests is not None
    assert requests.schedule_due
    scheduler.follow(policy(timedelta(hours=1)))
    assert scheduler.job("retrain") is None
