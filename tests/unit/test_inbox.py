from daemon.runtime.inbox import Inbox, Requests


def test_nothing_asked_for_is_none() -> None:
    assert Inbox().take(timeout=0) is None


def test_requests_coalesce_and_are_heard_once() -> None:
    inbox = Inbox()
    for _ in range(3):
        inbox.observe()
        inbox.schedule()

    assert inbox.take(timeout=0) == Requests(schedule_due=True)
    assert inbox.take(timeout=0) is None


def test_an_observation_does_not_swallow_a_request() -> None:
    inbox = Inbox()
    inbox.schedule()
    inbox.observe()

    assert inbox.take(timeout=0) == Requests(schedule_due=True)
