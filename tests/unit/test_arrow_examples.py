from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.core.states import Split
from daemon.core.stream import Example, Position
from daemon.runtime.arrow_examples import ExampleColumns, column, joined, newest_time, places_ahead
from daemon.testing.clock import START

FIRST = Example(
    position=Position("mails", 2, 7),
    id="1",
    text="buy now",
    label="spam",
    occurred_at=START + timedelta(microseconds=1),
    ingested_at=START,
    source="shop",
    split=Split.HOLDOUT,
    subject="someone",
)
SECOND = replace(FIRST, id="2", text="naïve 🤖", position=Position("mails", 3, 8), subject=None, split=Split.TRAIN)
THIRD = replace(FIRST, id="3", occurred_at=START - timedelta(days=365 * 80))
EXAMPLES = [FIRST, SECOND, THIRD]


def test_examples_come_out_of_columns_as_they_went_in() -> None:
    columns = ExampleColumns.of(EXAMPLES)
    assert list(columns) == EXAMPLES
    assert columns == EXAMPLES
    assert columns != EXAMPLES[:2]
    assert (len(columns), columns[1], columns[-1], columns[1:]) == (3, SECOND, THIRD, [SECOND, THIRD])
    assert not ExampleColumns.of([])


def test_a_place_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        ExampleColumns.of(EXAMPLES)[3]


def test_columns_without_some_places() -> None:
    assert ExampleColumns.of(EXAMPLES).without({0, 2}) == [SECOND]


def test_parts_are_joined_in_order() -> None:
    some = ExampleColumns.of([FIRST, SECOND])
    assert joined([some, [THIRD], some, []]) == [FIRST, SECOND, THIRD, FIRST, SECOND]
    assert joined([[FIRST], [SECOND]]) == [FIRST, SECOND]
    assert joined([]) == []


@pytest.mark.parametrize("examples", [EXAMPLES, ExampleColumns.of(EXAMPLES)])
def test_what_is_asked_of_all_is_the_same_of_a_list_and_of_columns(examples: list[Example]) -> None:
    assert column(examples, "text") == ["buy now", "naïve 🤖", "buy now"]
    assert column(examples, "occurred_at") == [example.occurred_at for example in EXAMPLES]
    assert newest_time(examples) == FIRST.occurred_at
    assert newest_time(ExampleColumns.of([])) is None


def test_what_is_ahead_of_its_reading_is_found_in_a_list_and_in_columns_of_many_parts() -> None:
    day, parts = timedelta(days=1), [ExampleColumns.of([FIRST, SECOND]), [], ExampleColumns.of([THIRD])]
    last = [replace(FIRST, occurred_at=START + by) for by in (day, day + timedelta(microseconds=1), 900_000 * day)]
    columns = joined([*parts, last])
    assert isinstance(columns, ExampleColumns)
    assert places_ahead(columns, day) == places_ahead([*columns], day) == [4, 5]
    assert places_ahead(columns, timedelta(microseconds=1)) == [3, 4, 5]
    assert places_ahead(ExampleColumns.of([]), day) == places_ahead([], day) == []


def test_of_columns_in_which_nothing_is_ahead_no_row_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ExampleColumns.of(EXAMPLES)
    for way in ("__iter__", "__getitem__", "column"):
        monkeypatch.setattr(ExampleColumns, way, lambda *_: pytest.fail("a row was looked at"))
    assert places_ahead(columns, timedelta(days=1)) == []
