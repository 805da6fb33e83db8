import threading
from collections.abc import Sequence

import pytest

from daemon.core.errors import NotFoundError, NotReadyError
from daemon.core.types import ModelVersion, Prediction
from daemon.serve.router import Router, Slot
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
    with pytest.raises(NotFoundError, match=r"version 7 is not loaded here; loaded are \[1, 2\]"):
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
