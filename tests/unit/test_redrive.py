"""Large dead letters, of which the store has the beginning only, are read once more where they came from."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from daemon.config import FieldNames, Splits
from daemon.core.errors import SourceError
from daemon.core.states import RejectReason
from daemon.core.stream import Amendment, DeadLetter, Position, Record
from daemon.ingest.cut_letters import KEPT, cut
from daemon.ingest.decode import Decoder
from daemon.ingest.redrive import redriven
from daemon.policy.schema import RecordsPolicy
from daemon.testing.clock import START

SIZE = 2 * KEPT
DECODER = Decoder(FieldNames(), frozenset(), RecordsPolicy(), Splits(), max_record=2 * SIZE)


def record(offset: int, size: int = SIZE) -> Record:
    body = {"id": f"id-{offset}", "text": "hello", "label": "yes", "unused": "x" * size}
    return Record(Position("t~2", 0, offset), START, b"key", json.dumps(body).encode())


def letter(record: Record) -> DeadLetter:
    (one,) = cut(
        [DeadLetter(record.position, RejectReason.TOO_BIG, "too large", record.key, record.value, rejected_at=START)]
    )
    return one


class Topic:
    def __init__(self, *records: Record) -> None:
        self.records = {record.position: record for record in records}
        self.asked: list[Position] = []

    def look_up(self, positions: Sequence[Position]) -> list[Record]:
        self.asked += positions
        return [self.records[position] for position in positions if position in self.records]


def again(letters: Sequence[DeadLetter], topic: Topic, *, max_record: int = 2 * SIZE) -> Amendment:
    return redriven(
        letters, replace(DECODER, max_record=max_record), lambda batch: batch, START, topic.look_up
    ).amendment


def test_what_was_too_large_becomes_an_example_once_it_may_be_as_large() -> None:
    large, small = record(7), DeadLetter(Position("t~2", 0, 3), RejectReason.NOT_JSON, "", None, b"{", START)
    topic = Topic(large)
    amendment = again([letter(large), small], topic)
    assert [example.id for example in amendment.examples] == ["id-7"]
    assert amendment.positions == [large.position]
    assert amendment.misplaced() == set()
    assert topic.asked == [large.position], "of the small one the store has all bytes"


def test_a_record_that_is_as_large_as_the_store_keeps_is_read_again_too() -> None:
    large = record(7, size=KEPT - len(record(7, size=0).value or b""))
    assert len(large.value or b"") == KEPT
    assert again([letter(large)], Topic(large)).positions == [large.position]


def test_another_record_in_its_place_and_none_leave_it_as_it_is() -> None:
    large = record(7)
    other = large._replace(value=(large.value or b"").replace(b"hello", b"other"))
    assert again([letter(large)], Topic(other)) == again([letter(large)], Topic()) == Amendment([], [], [], (), [], [])


def test_one_that_is_too_large_as_ever_is_not_read() -> None:
    topic = Topic(record(7))
    assert again([letter(record(7))], topic, max_record=SIZE).positions == []
    assert topic.asked == []


def test_one_whose_size_nobody_wrote_down_stays() -> None:
    large = record(7)
    assert again([replace(letter(large), detail="too large")], Topic(large)).positions == []


def test_brokers_that_do_not_answer_for_one_keep_no_other_waiting() -> None:
    class Silent(Topic):
        def look_up(self, positions: Sequence[Position]) -> Iterator[Record]:
            yield self.records[positions[0]]
            raise SourceError("brokers do not answer")

    first, second = record(7), record(9)
    small = DeadLetter(Position("t~2", 0, 3), RejectReason.TOO_BIG, "", None, record(3, size=0).value, START)
    became = redriven(
        [letter(first), letter(second), small], DECODER, lambda batch: batch, START, Silent(first, second).look_up
    )
    assert {position.offset for position in became.amendment.positions} == {3, 7}
    assert str(became.failure) == "brokers do not answer"
