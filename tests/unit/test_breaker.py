import pytest

from daemon.ingest.breaker import FACT, Breaker
from daemon.policy.schema import RecordsPolicy
from daemon.testing.clock import START, ManualClock
from daemon.testing.store import InMemoryStore

RECORDS = RecordsPolicy(max_reject_share=0.5, reject_window=100)


def breaker(store: InMemoryStore, records: RecordsPolicy = RECORDS) -> Breaker:
    return Breaker(store, records, ManualClock())


def tripped(store: InMemoryStore) -> Breaker:
    one = breaker(store)
    one.noted(100, 51)
    assert one.held()
    return one


def test_more_than_the_share_of_a_whole_window_stops_ingest_and_says_why() -> None:
    store = InMemoryStore()
    one = tripped(store)
    assert "51 of the newest 100" in (one.reason or "")
    assert "relearnd ingest resume" in (one.reason or "")
    assert store.get(FACT)["since"] == START.isoformat()


@pytest.mark.parametrize("batches", [[(100, 50)], [(60, 60)], [(99, 99)], [(10, 10)] * 5 + [(10, 0)] * 50, [(0, 0)]])
def test_less_does_not(batches: list[tuple[int, int]]) -> None:
    one = breaker(InMemoryStore())
    for read, rejected in batches:
        one.noted(read, rejected)
    assert not one.held()


def test_small_batches_add_up_and_old_ones_are_forgotten() -> None:
    one = breaker(InMemoryStore())
    for _ in range(30):
        one.noted(10, 0)
    for _ in range(5):
        one.noted(10, 10)
    assert not one.held()
    one.noted(10, 10)
    assert one.held()


def test_a_restart_changes_nothing() -> None:
    store = InMemoryStore()
    tripped(store)
    again = breaker(store)
    assert again.held()
    assert "51 of the newest 100" in (again.reason or "")


def test_an_operator_lets_it_go_on_and_it_counts_anew() -> None:
    store = InMemoryStore()
    one = tripped(store)
    one.resume()
    one.noted(10, 10)
    assert not one.held()
    assert not breaker(store).held()
    one.noted(100, 100)
    assert one.held()


def test_another_policy_for_records_lets_it_go_on_and_the_same_does_not() -> None:
    store = InMemoryStore()
    one = tripped(store)
    one.follow(RECORDS.model_copy())
    assert one.held()
    one.follow(RecordsPolicy(max_reject_share=0.9, reject_window=100))
    assert not one.held()
    tripped(store)
    assert not breaker(store, RecordsPolicy(unknown_label="accept")).held()


def test_100_percent_is_never() -> None:
    one = breaker(InMemoryStore(), RecordsPolicy(max_reject_share=1.0, reject_window=1))
    one.noted(1000, 1000)
    assert not one.held()
