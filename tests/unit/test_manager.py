"""Which versions the manager loads, and which of them answers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.core.errors import ArtefactError, NotFoundError, RelearndError
from daemon.core.states import ServableState
from daemon.core.types import Aliases, ModelVersion
from daemon.serve.transitions import MOST_FAILURES
from tests.artefacts import MODEL, NOON
from tests.managing import PATIENCE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_waits_for_the_first_champion_and_says_so(bench: Bench) -> None:
    assert bench.refresh().waiting_for == "model 'tweets' has no champion yet"
    bench.add(1)
    assert bench.refresh().served is None
    bench.promote(1)
    status = bench.refresh()
    assert (status.served, status.waiting_for) == (1, None)
    with bench.router.handle() as handle:
        assert handle.predictor.predict(["x"])[0].label == "1"


def test_it_starts_with_the_champion_before_anything_else(bench: Bench) -> None:
    bench.keep = 4
    bench.start()
    bench.add(4)
    bench.promote(2)
    served_when_loading: list[int | None] = []
    bench.during_load = lambda: served_when_loading.append(bench.manager.status().served)
    bench.refresh()
    assert bench.loads == [2, 4, 3, 1]
    assert served_when_loading == [None, 2, 2, 2]


def test_a_swap_is_remembered_and_the_old_version_stays_for_a_roll_back_without_a_load(bench: Bench) -> None:
    bench.add(2)
    for champion in (1, 2, 1):
        bench.promote(champion)
        status = bench.refresh()
    assert bench.loads == [1, 2]
    assert [(swap.before, swap.after, swap.at) for swap in status.swaps] == [
        (None, 1, NOON),
        (1, 2, NOON),
        (2, 1, NOON),
    ]
    assert bench.metric("swaps_total", result="switched") == 3
    assert bench.metric("served_version") == 1


def test_versions_without_an_alias_leave_when_newer_ones_come(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.add(3)
    bench.promote(4)
    assert [version.number for version in bench.refresh().versions] == [1, 3, 4]  # previous, and the newest two
    bench.promote(3)
    assert bench.router.loaded == [1, 3, 4]
    bench.refresh()
    assert bench.router.loaded == [3, 4]
    with pytest.raises(NotFoundError):
        bench.router.handle(1)


@pytest.mark.parametrize("failure", [ArtefactError("damaged"), OSError("disk gone"), ValueError("a bug")])
def test_a_champion_that_cannot_be_loaded_leaves_the_old_one_answering(failure: Exception, bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()
    bench.broken[2] = failure
    bench.add(1)
    bench.promote(2)
    for _ in range(MOST_FAILURES + 2):
        status = bench.refresh()
    assert bench.loads.count(2) == MOST_FAILURES
    assert (status.served, status.champion) == (1, 2)
    failed = next(version for version in status.versions if version.number == 2)
    assert (failed.state, failed.failures, failed.error) == (ServableState.FAILED, MOST_FAILURES, str(failure))
    assert bench.metric("load_failures_total") == MOST_FAILURES
    assert bench.metric("swaps_total", result="failed") == MOST_FAILURES
    with bench.router.handle() as handle:
        assert handle.predictor.predict(["x"])[0].label == "1"


def test_a_first_champion_that_cannot_be_loaded_is_why_nothing_is_served(bench: Bench) -> None:
    bench.add(1)
    bench.broken[1] = ArtefactError("golden outputs are not reproduced")
    bench.promote(1)
    assert bench.refresh().waiting_for == "champion 1 cannot be loaded: golden outputs are not reproduced"


def test_moving_the_aliases_is_a_new_chance_for_what_had_failed(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.broken[2] = ArtefactError("damaged")
    for _ in range(MOST_FAILURES + 1):
        bench.refresh()
    bench.broken.clear()
    assert bench.refresh().versions[1].state is ServableState.FAILED
    bench.promote(2)
    assert bench.refresh().served == 2


def test_a_champion_that_moves_while_another_loads_comes_next_and_the_last_word_wins(bench: Bench) -> None:
    bench.add(3)
    bench.promote(1)

    def promote_three_then_two() -> None:
        if len(bench.loads) == 1:
            bench.promote(3)
        elif len(bench.loads) == 2:
            bench.promote(2)

    bench.during_load = promote_three_then_two
    assert bench.refresh().served == 2
    assert bench.loads == [1, 3, 2]


def test_an_unreadable_registry_changes_nothing_and_is_visible(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)
    bench.refresh()

    def unreadable(model: str) -> Aliases:
        raise ArtefactError("aliases.json cannot be read")

    readable, bench.registry.aliases = bench.registry.aliases, unreadable  # type: ignore[method-assign]
    status = bench.refresh()
    assert (status.served, status.registry_error) == (1, "aliases.json cannot be read")
    bench.registry.aliases = readable  # type: ignore[method-assign]
    assert bench.refresh().registry_error is None


def test_a_damaged_record_of_another_version_does_not_keep_the_champion_from_loading(bench: Bench) -> None:
    bench.add(1)
    bench.promote(1)

    def damaged(model: str) -> Sequence[ModelVersion]:
        raise RelearndError("7.json cannot be read")

    bench.registry.versions = damaged  # type: ignore[method-assign]
    status = bench.refresh()
    assert (status.served, status.registry_error) == (1, "7.json cannot be read")


# --- canary and shadow ---


def test_a_canary_answers_its_share_of_the_keys_always_the_same(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.2))
    status = bench.refresh()
    assert (status.served, status.canary, status.canary_share) == (1, 2, 0.2)
    keys = [f"request {number}" for number in range(2000)]

    def who() -> list[int]:
        return [bench.router.handle(key=key).version.number for key in keys]

    few = who()
    assert few == who()
    assert 0.17 < few.count(2) / len(few) < 0.23
    assert bench.ask() == 1, "without a key it is the champion"
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary_share=0.5))
    bench.refresh()
    assert all(after == 2 for before, after in zip(few, who(), strict=True) if before == 2)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=None, canary_share=0.0))
    bench.refresh()
    assert set(who()) == {1}


def test_a_canary_that_cannot_be_loaded_leaves_its_share_to_the_champion(bench: Bench) -> None:
    bench.add(2)
    bench.broken[2] = ArtefactError("damaged")
    bench.promote(1)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.5))
    for _ in range(3):
        status = bench.refresh()
    assert (status.canary, status.canary_share) == (None, 0.0)
    assert {bench.router.handle(key=f"{number}").version.number for number in range(50)} == {1}
    assert bench.metric("canary_version") == 0


def with_canary(bench: Bench) -> None:
    bench.settle(2)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.5))
    assert bench.refresh().canary == 2


def test_a_canary_that_leaves_most_of_its_requests_without_an_answer_is_taken_off(bench: Bench) -> None:
    with_canary(bench)
    bench.ask(2)
    bench.wait_in_vain(1, 2)
    bench.ask(1)
    bench.ask(2)
    assert bench.refresh().canary == 2, "not most of them"
    bench.wait_in_vain(2, 2)
    bench.ask(1)
    status = bench.refresh()
    assert (status.served, status.canary) == (1, None)
    refused = next(version for version in status.versions if version.number == 2)
    assert "2 requests had no answer from it within 10 s" in (refused.error or "")


def test_a_canary_that_hangs_is_taken_off_although_nobody_asks_the_champion(bench: Bench) -> None:
    with_canary(bench)
    bench.wait_in_vain(1, 2)
    assert bench.refresh().canary is None


def test_a_server_with_too_much_to_do_and_clients_in_a_hurry_speak_against_no_canary(bench: Bench) -> None:
    with_canary(bench)
    bench.wait_in_vain(3, 1, 2)
    bench.ask(1)
    assert bench.refresh().canary == 2
    bench.now += PATIENCE
    bench.wait_in_vain(3, 2, seconds=0.5)
    assert bench.refresh().canary == 2


def test_a_canary_on_which_requests_fail_is_taken_off(bench: Bench) -> None:
    bench.add(2)
    bench.promote(1)
    bench.registry.move(MODEL, replace(bench.registry.aliases(MODEL), canary=2, canary_share=0.5))
    bench.refresh()
    bench.watched()
    assert bench.ask(2, failing=True) == 2
    status = bench.refresh()
    assert (status.served, status.canary) == (1, None)
    refused = next(version for version in status.versions if version.number == 2)
    assert refused.state is ServableState.FAILED and "failed" in (refused.error or "")
    assert bench.refresh().canary is None
