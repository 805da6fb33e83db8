import re
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.core.stream import Tally
from daemon.ingest.breaker import FACT, Breaker
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import START, ManualClock
from daemon.testing.store import InMemoryStore

RECORDS = RecordsPolicy(max_reject_share=0.5, reject_window=100)


def breaker(store: InMemoryStore, records: RecordsPolicy = RECORDS) -> Breaker:
    return Breaker(store, records, ManualClock(), LearnerMetrics())


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


NULLS, NEW = "records.quality.max_null_share.source", "records.quality.max_new_label_share"


def watching(store: InMemoryStore, **quality: Any) -> tuple[Breaker, LearnerMetrics]:
    metrics = LearnerMetrics()
    settings = {"max_null_share": {"source": "5%"}, "max_new_label_share": "10%", **quality}
    records = RecordsPolicy.model_validate({"reject_window": 100, "quality": settings})
    return Breaker(store, records, ManualClock(), metrics), metrics


@pytest.mark.parametrize(
    ("tallies", "words"),
    [
        (
            {NULLS: Tally(6, 100)},
            "6 of the newest 100 records have no 'source'; .*source is 0.05 .*kafka.fields.source",
        ),
        ({NEW: Tally(11, 100)}, "11 of the newest 100 records have a label that is new; .* is 0.1 .*task.labels"),
    ],
)
def test_a_share_above_its_limit_stops_ingest_as_rejects_do(tallies: dict[str, Tally], words: str) -> None:
    store = InMemoryStore()
    one, metrics = watching(store)
    one.noted(100, 0, tallies)
    assert one.held()
    assert re.search(f"{words}.*relearnd ingest resume", one.reason or "")
    assert watching(store)[0].held(), "also after a restart"
    (check,) = tallies
    assert f'relearnd_failed_checks_total{{check="{check}"}} 1.0' in metrics.render().decode()
    one.resume()
    one.noted(99, 0, {check: Tally(99, 99)})
    assert not one.held(), "no window is full yet"


def test_a_share_at_its_limit_is_no_failure() -> None:
    one, _ = watching(InMemoryStore())
    one.noted(100, 0, {NULLS: Tally(5, 100), NEW: Tally(10, 100)})
    assert (one.held(), one.warning) == (False, "")


def test_where_the_policy_only_wants_a_report_ingest_goes_on_and_the_warning_ends_by_itself() -> None:
    one, metrics = watching(InMemoryStore(), failed_check="report")
    for _ in range(2):
        one.noted(100, 0, {NULLS: Tally(50, 100)})
        assert not one.held()
        assert "50 of the newest 100" in one.warning
    one.noted(100, 0, {NULLS: Tally(0, 100)})
    assert one.warning == ""
    shown = metrics.render().decode()
    assert f'relearnd_failed_checks_total{{check="{NULLS}"}} 1.0' in shown
    assert f'relearnd_check_share{{check="{NULLS}"}} 0.0' in shown
    one.noted(100, 100)
    assert one.held(), "what is refused stops ingest all the same"


def test_a_check_that_another_policy_no_longer_asks_for_is_forgotten() -> None:
    one, metrics = watching(InMemoryStore(), failed_check="report")
    one.noted(100, 0, {NULLS: Tally(50, 100)})
    one.follow(RecordsPolicy(reject_window=100))
    one.noted(100, 0, {})
    assert one.warning == ""
    assert f'relearnd_check_share{{check="{NULLS}"}}' not in metrics.render().decode()


def test_another_policy_that_comes_while_a_batch_is_judged_is_for_the_next_one() -> None:
    one, _ = watching(InMemoryStore())

    class Meanwhile(UserDict[str, Tally]):
        def __iter__(self) -> Iterator[str]:
            one.follow(RecordsPolicy(reject_window=100))
            return super().__iter__()

    one.noted(100, 0, Meanwhile({NULLS: Tally(50, 100)}))
    assert "50 of the newest 100" in (one.reason or "")
    one.follow(RecordsPolicy(reject_window=100))
    assert not one.held(), "the pause began under the policy before"


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
