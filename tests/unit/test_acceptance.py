"""What an operator's word about a log becomes in the store."""

import pytest

from daemon.core.errors import ConflictError, NotFoundError, UsageError
from daemon.core.states import GapReason, TroubleReason
from daemon.core.stream import Advance, Gap, TopicPartition, Trouble
from daemon.ingest.acceptance import acceptance
from daemon.ingest.kafka_logs import next_name, stored_name

ZERO, ONE = TopicPartition("examples", 0), TopicPartition("examples", 1)


def trouble(reason: TroubleReason, *, first: int, next: int) -> Trouble:
    return Trouble(reason, "", first, next)


@pytest.mark.parametrize("reason", [TroubleReason.LOG_SHORT, TroubleReason.LOG_REPLACED])
def test_a_new_log_is_a_stream_of_its_own_from_its_beginning(reason: TroubleReason) -> None:
    batch = acceptance("examples", None, None, {ZERO: trouble(reason, first=3, next=100)}, {ZERO: 100})
    assert batch.advances == {TopicPartition("examples~2", 0): Advance(None, 3)}
    assert batch.gaps == []


def test_the_beginning_of_a_new_log_may_be_given_up() -> None:
    batch = acceptance("examples", 0, 7, {ZERO: trouble(TroubleReason.LOG_SHORT, first=3, next=100)}, {})
    assert batch.advances == {TopicPartition("examples~2", 0): Advance(None, 7)}
    assert batch.gaps == [Gap("examples~2", 0, 3, 7, GapReason.SKIPPED)]


def test_what_retention_took_is_a_gap_and_so_is_what_is_given_up_behind_it() -> None:
    batch = acceptance("examples", 1, 9, {ONE: trouble(TroubleReason.RETENTION, first=6, next=2)}, {ONE: 2})
    assert batch.advances == {ONE: Advance(2, 9)}
    assert batch.gaps == [
        Gap("examples", 1, 2, 6, GapReason.RETENTION),
        Gap("examples", 1, 6, 9, GapReason.SKIPPED),
    ]


def test_a_damaged_batch_is_given_up_to_an_offset_behind_it() -> None:
    damaged = {ZERO: trouble(TroubleReason.DAMAGED, first=5, next=5)}
    for stands, begins in ((5, 5), (6, 6), (None, 5)):
        batch = acceptance("examples", 0, 8, damaged, {} if stands is None else {ZERO: stands})
        assert batch.advances == {ZERO: Advance(stands, 8)}
        assert batch.gaps == [Gap("examples", 0, begins, 8, GapReason.SKIPPED)]
    with pytest.raises(UsageError, match="--from"):
        acceptance("examples", 0, None, damaged, {ZERO: 5})


def test_records_before_the_damage_that_are_still_being_stored_are_not_given_up() -> None:
    damaged = {ZERO: trouble(TroubleReason.DAMAGED, first=5, next=5)}
    with pytest.raises(ConflictError, match="from 3 to 4 are still being stored; try again"):
        acceptance("examples", 0, 8, damaged, {ZERO: 3})


def test_what_cannot_be_meant_is_refused() -> None:
    both = {ours: trouble(TroubleReason.LOG_SHORT, first=3, next=9) for ours in (ZERO, ONE)}
    with pytest.raises(UsageError, match="--partition, one of 0, 1"):
        acceptance("examples", None, 5, both, {})
    with pytest.raises(UsageError, match="begins at offset 3"):
        acceptance("examples", 0, 1, both, {})
    with pytest.raises(NotFoundError, match=r"others\[2\].*examples\[0\]"):
        acceptance("others", 2, None, both, {})
    assert set(acceptance("examples", None, None, both, {}).advances) == {next_name(ZERO), next_name(ONE)}


def test_the_newest_accepted_log_is_the_one_that_is_read() -> None:
    logs = [TopicPartition(name, 0) for name in ("examples", "examples~10", "examples~9", "examples-2~30")]
    stored = dict.fromkeys([*logs, TopicPartition("examples~11", 1)], 5)
    assert stored_name(ZERO, stored) == TopicPartition("examples~10", 0)
    assert next_name(TopicPartition("examples~10", 0)) == TopicPartition("examples~11", 0)
    assert stored_name(ONE, {}) == ONE
