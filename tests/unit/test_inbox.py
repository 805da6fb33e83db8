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


def test_what_is_put_back_waits_for_the_next_cycle_and_wakes_none() -> None:
    inbox = Inbox()
    inbox.put_back(Requests(schedule_due=True))
    assert inbox.take(timeout=0) is None
    inbox.put_back(Requests())
    inbox.observe()
    assert inbox.take(timeout=0) == Requests(schedule_due=True)
