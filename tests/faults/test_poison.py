from daemon.core.states import RejectReason
from tests.faults.poison import POISON, points, poison


def test_one_bad_record_of_any_kind_at_any_place_is_the_only_dead_letter_of_its_batch() -> None:
    assert set(POISON) == set(RejectReason)
    tally = poison()
    assert tally.clean, tally.told
    assert tally.total.points == points()
