from datetime import timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.stream import Position, Record, TopicPartition
from daemon.ingest.record_columns import RecordColumns
from daemon.testing.clock import START

content = st.none() | st.binary(max_size=4)
records = st.lists(
    st.builds(
        Record,
        st.builds(Position, st.sampled_from(["t", "u~2"]), st.integers(0, 2), st.integers(0, 2**62)),
        st.none() | st.integers(0, 10**15).map(lambda micros: START + timedelta(microseconds=micros)),
        content,
        content,
        st.integers(-1, 9),
    ),
    max_size=9,
)


@given(records=records, start=st.integers(-9, 9), stop=st.integers(-9, 9))
def test_taken_apart_cut_and_joined_they_are_the_same_records(records: list[Record], start: int, stop: int) -> None:
    columns = RecordColumns.of(records)
    assert list(columns) == records
    assert [columns[place] for place in range(len(records))] == records
    assert list(columns[start:stop]) == records[start:stop]
    assert list(columns.where(np.arange(len(records)) % 2 == 0)) == records[::2]
    assert list(RecordColumns.joined([columns[:stop], columns[stop:], columns])) == records + records


def test_a_run_is_of_one_partition_and_without_holes() -> None:
    places = [(0, 3), (0, 4), (0, 6), (1, 7), (1, 8), (1, 8)]
    columns = RecordColumns.of([Record(Position("t", part, offset), None, None, None) for part, offset in places])
    zero, one = TopicPartition("t", 0), TopicPartition("t", 1)
    assert list(columns.runs()) == [(zero, 0, 2), (zero, 2, 3), (one, 3, 5), (one, 5, 6)]
    assert list(RecordColumns.of([]).runs()) == []
