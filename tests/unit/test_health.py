from datetime import UTC, datetime, timedelta

from daemon.runtime.health import Board, Heartbeats

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_loop_that_stops_beating_is_stuck() -> None:
    time = 0.0
    heartbeats = Heartbeats(lambda: time)
    beat = heartbeats.expect("ingest", limit=10)
    heartbeats.expect("cycle", limit=float("inf"))
    time = 9.0
    beat()
    time = 18.0
    assert heartbeats.stuck() == {}
    time = 20.0
    assert heartbeats.stuck() == {"ingest": 11.0}


def test_a_loop_that_is_held_up_is_not_stuck_and_has_its_time_anew_afterwards() -> None:
    time, held_up = 0.0, True
    heartbeats = Heartbeats(lambda: time)
    heartbeats.expect("ingest", limit=10, held_up=lambda: held_up)
    time = 1000.0
    assert heartbeats.stuck() == {}
    held_up = False
    time = 1010.0
    assert heartbeats.stuck() == {}
    time = 1011.0
    assert heartbeats.stuck() == {"ingest": 11.0}


def test_since_moves_only_with_the_state() -> None:
    now = START
    board = Board(lambda: now)
    board.report("drift", "ok", "first")
    now += timedelta(minutes=1)
    board.report("drift", "ok", "second")
    assert (board.components["drift"].since, board.components["drift"].detail) == (START, "second")
    board.report("drift", "degraded", "third")
    assert board.components["drift"].since == now
