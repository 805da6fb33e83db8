from typing import Any

import pytest

from daemon.config import FieldNames, Splits
from daemon.core.stream import Position, Record, Tally
from daemon.ingest.decode import Decoder
from daemon.ingest.nulls import null_tallies
from daemon.ingest.record_columns import RecordColumns
from daemon.ingest.strict_json import parse_object
from daemon.policy.schema import RecordsPolicy


def decoder(*watched: str, fields: FieldNames | None = None, **settings: Any) -> Decoder:
    records = RecordsPolicy.model_validate({"quality": {"max_null_share": dict.fromkeys(watched, "5%")}})
    return Decoder(fields or FieldNames(), frozenset(), records, Splits(), max_record=1000, **settings)


def records(*values: bytes | None, topic: str = "t") -> RecordColumns:
    return RecordColumns.of(
        [Record(Position(topic, 0, offset), None, None, value) for offset, value in enumerate(values)]
    )


def found(tallies: Any) -> dict[str, Tally]:
    return {check.removeprefix("records.quality.max_null_share."): tally for check, tally in tallies.items()}


MIXED = records(
    b'{"source": "here", "label": "a"}',
    b'{"source": null, "label": ""}',
    b'{"source": " "}',
    b'{"label": 0}',
    b"broken",
    None,
)


def test_missing_null_and_empty_are_nothing_and_what_is_no_object_is_not_counted() -> None:
    assert found(null_tallies(MIXED, decoder("source", "label"))) == {"source": Tally(3, 4), "label": Tally(2, 4)}


def test_all_at_once_and_one_by_one_give_the_same() -> None:
    whole = RecordColumns.of([record for record in MIXED if record.value and record.value.startswith(b"{")])
    at_once = null_tallies(whole, decoder("source", "label"))
    assert at_once == null_tallies(whole, decoder("source", "label", parse=lambda *given: parse_object(*given)))
    assert at_once == null_tallies(MIXED, decoder("source", "label"))


def test_a_name_may_reach_into_an_object_and_a_field_that_nobody_named_is_never_there() -> None:
    fields = FieldNames(source="meta.from", split=None)
    nested = records(b'{"meta": {"from": "x"}}', b'{"meta": {"from": ""}}', b'{"meta": null}')
    tallies = null_tallies(nested, decoder("source", "split", fields=fields))
    assert found(tallies) == {"source": Tally(2, 3), "split": Tally(3, 3)}


@pytest.mark.parametrize("topic", ["halves", "halves~2"])
def test_halves_of_examples_are_not_counted(topic: str) -> None:
    halves: Any = {"halves": None}
    assert found(null_tallies(records(b"{}", topic=topic), decoder("label", halves=halves))) == {"label": Tally(0, 0)}


def test_nobody_pays_who_does_not_ask() -> None:
    def parse(*_: Any) -> Any:
        raise AssertionError

    assert null_tallies(MIXED, decoder(parse=parse)) == {}
