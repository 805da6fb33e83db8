from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from daemon.config import Splits
from daemon.core.states import HalfKind, QuarantineReason
from daemon.core.stream import Half, Position
from daemon.ingest.join import Joined, join
from daemon.ingest.splits import splitter
from daemon.testing.clock import START

SPLITS = splitter(Splits())


def prediction(offset: int, id: str = "1", text: str = "hello") -> Half:
    return Half(
        Position("predictions", 0, offset), HalfKind.PREDICTION, id, text, None, "ham", 3, START, START, "server"
    )


def label(offset: int, id: str = "1", label: str = "spam", minutes: int = 5) -> Half:
    said = START + timedelta(minutes=minutes)
    return Half(Position("labels", 0, offset), HalfKind.LABEL, id, None, label, None, None, said, said, "agent-7")


def joined(*arrived: Half, stored: tuple[Half, ...] = (), ambiguity: bool = True) -> Joined:
    return join(arrived, stored, SPLITS, ambiguity=ambiguity)


def test_the_record_that_completes_an_id_becomes_the_example() -> None:
    for found in (joined(label(7), stored=(prediction(3),)), joined(prediction(3), label(7))):
        (example,) = found.completed
        assert example.position == Position("labels", 0, 7)
        assert (example.id, example.text, example.label, example.source) == ("1", "hello", "spam", "agent-7")
        assert (example.occurred_at, example.ingested_at) == (START, START + timedelta(minutes=5))
        assert example.split == SPLITS("1", "hello")
        assert list(found.delays) == [300.0]


def test_labels_may_come_first() -> None:
    found = joined(label(7), prediction(3))
    assert found.waiting == [label(7)]
    assert [example.position for example in found.completed] == [Position("predictions", 0, 3)]
    assert found.completed[0].label == "spam"


def test_a_half_without_its_other_half_waits() -> None:
    assert joined(label(7, "1"), prediction(3, "2")).waiting == [label(7, "1"), prediction(3, "2")]


def test_the_newest_of_several_predictions_counts() -> None:
    found = joined(prediction(1, text="old"), prediction(2, text="new"), label(1))
    assert [example.text for example in found.completed] == ["new"]


def test_a_label_said_twice_completes_twice_so_that_a_duplicate_or_a_conflict_is_found() -> None:
    found = joined(label(1, label="spam"), label(2, label="ham"), stored=(prediction(1),))
    assert [(e.position.offset, e.label) for e in found.completed] == [(1, "spam"), (2, "ham")]


def test_labels_that_wait_and_differ_are_a_conflict_where_the_policy_says_so() -> None:
    halves = (label(1, label="spam"), label(2, label="ham"), prediction(9))
    found = joined(*halves)
    assert [(one.reason, one.example.label) for one in found.ambiguous] == [(QuarantineReason.LABEL_CONFLICT, "ham")]
    assert "'ham', 'spam'" in found.ambiguous[0].detail
    assert found.completed == []
    assert [e.label for e in joined(*halves, ambiguity=False).completed] == ["ham"]


def test_a_label_that_is_older_than_its_prediction_has_no_negative_delay() -> None:
    assert joined(prediction(1), label(1, minutes=-5)).delays == [0.0]


halves = st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=20).map(
    lambda kinds: [
        prediction(n, id, id) if is_prediction else label(n, id) for n, (is_prediction, id) in enumerate(kinds)
    ]
)


@given(halves, st.integers(0, 20))
def test_each_record_ends_once_wherever_the_batch_was_cut(arrived: list[Half], cut: int) -> None:
    whole = joined(*arrived)
    first = joined(*arrived[:cut])
    second = joined(*arrived[cut:], stored=tuple(first.waiting))
    parts = [*first.completed, *second.completed]
    assert parts == whole.completed
    assert [*first.waiting, *second.waiting] == whole.waiting
    ended = [one.position for one in (*parts, *whole.waiting)]
    assert sorted(map(str, ended)) == sorted(str(half.position) for half in arrived)
