from collections import Counter

from daemon.core.errors import StoreError
from daemon.runtime.readings import Readings


class Source:
    """Fails while `error` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.read = 0

    def __call__(self) -> None:
        if self.error:
            raise self.error
        self.read += 1


def test_a_source_that_fails_is_told_once_until_it_was_read_again_and_stops_no_other() -> None:
    store, registry, failures = Source(), Source(), Counter[str]()
    readings = Readings({"store": store, "registry": registry}, lambda source: failures.update([source]))
    store.error = StoreError("the disk is gone")
    readings.take()
    readings.take()
    assert (failures, store.read, registry.read) == ({"store": 1}, 0, 2)
    store.error = None
    readings.take()
    store.error = StoreError("gone again")
    readings.take()
    assert (failures, store.read, registry.read) == ({"store": 2}, 1, 4)
