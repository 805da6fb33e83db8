import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest

from daemon.core.errors import ArtefactError, ExpiredError, NotFoundError, NotReadyError, OverloadedError
from daemon.core.types import ModelVersion, Prediction
from daemon.serve.router import Router, Slot, falls_to_canary
from daemon.serve.traffic import Asked, Fate, Traffic
from tests.artefacts import version_of


class Silent:
    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        return []


def slot(number: int) -> Slot:
    return Slot(version_of(number), Silent())


def test_without_a_champion_nobody_answers_and_the_reason_is_named() -> None:
    with pytest.raises(NotReadyError, match="no champion"):
        Router().handle()


def test_the_champion_answers_unless_a_version_is_pinned() -> None:
    router, one, two = Router(), slot(1), slot(2)
    router.publish(two, {1: one, 2: two})
    assert router.handle().version.number == 2
    assert router.handle(1).version.number == 1
    with pytest.raises(NotFoundError, match=r"version 7 is not loaded here; loaded are \[1, 2\].*server.keep_versions"):
        router.handle(7)


def test_a_handle_keeps_its_version_across_a_switch_and_holds_the_drain_up() -> None:
    router, one, two = Router(), slot(1), slot(2)
    router.publish(one, {1: one})
    with router.handle() as handle:
        router.publish(two, {2: two})
        assert handle.version.number == 1
        assert router.handle().version.number == 2
        assert one.drain(timeout=0.001) is False
    assert one.drain(timeout=0.001) is True


def test_drain_ends_as_soon_as_the_last_handle_is_given_back() -> None:
    router, one = Router(), slot(1)
    router.publish(one, {1: one})
    handle = router.handle()
    drained: list[bool] = []
    waiter = threading.Thread(target=lambda: drained.append(one.drain(timeout=10)))
    waiter.start()
    handle.__exit__(None, None, None)
    waiter.join(5)
    assert drained == [True]


def test_nobody_borrows_from_a_version_that_drains() -> None:
    one = slot(1)
    assert one.drain(timeout=0)
    assert not one.borrow()


def test_what_is_published_is_a_copy() -> None:
    router, slots = Router(), {1: slot(1)}
    router.publish(slots[1], slots)
    slots.clear()
    assert router.loaded == [1]
    served: ModelVersion | None = router.served
    assert served is not None and served.number == 1


def test_the_share_of_a_canary_is_the_share_of_all_keys_and_grows_without_moving_anybody_back() -> None:
    keys = [f"key {number}" for number in range(4000)]
    few, more = ({key for key in keys if falls_to_canary(key, share)} for share in (0.05, 0.2))
    assert 0.04 < len(few) / len(keys) < 0.06 and 0.18 < len(more) / len(keys) < 0.22
    assert few < more
    assert not any(falls_to_canary(key, 0.0) for key in keys)
    falls_to_canary("half a surrogate: \ud83d", 0.5)


def test_what_a_handle_met_is_remembered_and_only_our_own_faults_count() -> None:
    router, now = Router(traffic := Traffic(lambda: now[0])), [10.0]
    router.publish(one := slot(1), {1: one})
    for error in (None, ArtefactError("not finite"), OverloadedError("full"), ConnectionError(), ZeroDivisionError()):
        with suppress(Exception), router.handle():
            now[0] += 0.002
            if error:
                raise error
    seen = traffic.lately(99.0)
    assert (seen.requests, seen.failed, seen.late) == (5, 2, 0)
    assert seen.p99_ms == pytest.approx(2)
    assert traffic.lately(99.0, version=2).requests == 0
    assert traffic.lately(0.005).requests == 3


def test_late_is_what_waited_as_long_as_the_server_lets_it_and_not_what_its_client_gave_up() -> None:
    router, now = Router(traffic := Traffic(lambda: now[0], patience=10.0)), [0.0]
    router.publish(one := slot(1), {1: one})
    for seconds in (0.5, 9.0, 10.0, 11.0):
        with suppress(ExpiredError), router.handle():
            now[0] += seconds
            raise ExpiredError("no answer")
    assert (traffic.lately(99.0).late, traffic.lately(99.0).failed) == (2, 0)


def test_a_tally_counts_every_request_however_many_and_from_however_many_threads() -> None:
    traffic = Traffic(lambda: 0.0, remembered=10)
    tally, each = traffic.tally(), 5000

    def ask(version: int) -> None:
        for number in range(each):
            failed = number % 100 == 0
            seconds = 1.0 if number >= 0.98 * each else 0.010
            traffic.add(Asked(0.0, seconds, version, Fate.FAILED if failed else Fate.ANSWERED))

    threads = [threading.Thread(target=ask, args=(version,)) for version in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tally.count(), tally.count(version=2), tally.count(Fate.FAILED)) == (2 * each, each, 100)
    assert tally.p99_ms == pytest.approx(1000, rel=0.011)
    traffic.close(tally)
    ask(1)
    assert tally.count() == 2 * each
    assert traffic.tally().p99_ms is None
    assert traffic.lately(1.0).requests == 10, "only the newest are remembered one by one"
