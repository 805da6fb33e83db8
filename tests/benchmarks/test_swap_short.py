"""The short forms of bench-swap and bench-restart: what must hold at any speed."""

from pathlib import Path

from tests.benchmarks import restart, swap


def test_swaps_of_a_real_model_under_load_lose_no_request_and_give_no_wrong_answer(tmp_path: Path) -> None:
    found = swap.measure(swap.SHORT, tmp_path)
    figures, made = found["figures"], found["figures"]["kinds"]
    assert (figures["failed"], figures["wrong"], figures["returned"]) == (0, 0, 0), figures["examples_of_trouble"]
    assert figures["reports_with_failed_requests"] == 0
    assert made["failing"] == swap.SHORT.failing and made["rollback"] == swap.SHORT.rollbacks
    assert figures["swaps"] == swap.SHORT.swaps and figures["requests"] >= swap.SHORT.requests
    assert figures["versions_seen"] >= 3
    assert abs(figures["rss_growth"]) < 0.1


def test_a_killed_server_answers_rightly_again(tmp_path: Path) -> None:
    assert len(restart.measure(2, tmp_path)) == 2
