"""The table of what a server does next. "Old ready, new failed for good -> nothing" is the row that keeps us serving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.states import ServableState
from daemon.core.types import Aliases
from daemon.serve.transitions import (
    MOST_FAILURES,
    ServableSnapshot,
    Step,
    Transition,
    aspired_versions,
    next_transition,
)

UNLOADED, LOADING, READY = ServableState.UNLOADED, ServableState.LOADING, ServableState.READY
FAILED, DRAINING = ServableState.FAILED, ServableState.DRAINING


def want(number: int, state: ServableState, failures: int = 0) -> ServableSnapshot:
    return ServableSnapshot(number, state, aspired=True, failures=failures)


def leave(number: int, state: ServableState) -> ServableSnapshot:
    return ServableSnapshot(number, state, aspired=False)


def step(kind: Step, number: int) -> Transition:
    return Transition(kind, number)


@pytest.mark.parametrize(
    ("what", "snapshots", "champion", "served", "expected"),
    [
        ("empty registry", [], None, None, None),
        ("first champion", [want(1, UNLOADED)], 1, None, step(Step.LOAD, 1)),
        ("first champion is loaded", [want(1, READY)], 1, None, step(Step.SWITCH, 1)),
        ("nothing to do", [want(1, READY)], 1, 1, None),
        ("new before old", [leave(1, READY), want(2, UNLOADED)], 2, 1, step(Step.LOAD, 2)),
        ("switch before unload", [leave(1, READY), want(2, READY)], 2, 1, step(Step.SWITCH, 2)),
        ("old goes last", [leave(1, READY), want(2, READY)], 2, 2, step(Step.UNLOAD, 1)),
        ("old ready, new failed: try again", [want(1, READY), want(2, FAILED, 1)], 2, 1, step(Step.LOAD, 2)),
        ("old ready, new failed for good", [leave(1, READY), want(2, FAILED, MOST_FAILURES)], 2, 1, None),
        ("a version without an alias", [leave(1, READY), want(2, READY), want(3, READY)], 3, 3, step(Step.UNLOAD, 1)),
        ("champion first", [want(1, UNLOADED), want(2, UNLOADED), want(3, UNLOADED)], 2, None, step(Step.LOAD, 2)),
        ("then the newest", [want(1, UNLOADED), want(2, READY), want(3, UNLOADED)], 2, 2, step(Step.LOAD, 3)),
        ("switch before others load", [want(1, READY), want(2, UNLOADED)], 1, None, step(Step.SWITCH, 1)),
        ("roll back to what is loaded", [want(1, READY), want(2, READY)], 1, 2, step(Step.SWITCH, 1)),
        ("one at a time while loading", [want(1, READY), want(2, LOADING), want(3, UNLOADED)], 3, 1, None),
        ("one at a time while draining", [leave(1, DRAINING), want(2, READY), want(3, UNLOADED)], 3, 2, None),
        ("not aspired and failed is left", [leave(1, FAILED), want(2, READY)], 2, 2, None),
    ],
)
def test_one_step_at_a_time_towards_what_ought_to_be(
    what: str,
    snapshots: list[ServableSnapshot],
    champion: int | None,
    served: int | None,
    expected: Transition | None,
) -> None:
    assert next_transition(snapshots, champion=champion, served=served) == expected, what


@pytest.mark.parametrize(
    ("what", "snapshots", "expected"),
    [
        (
            "a fallback that is loaded answers",
            [want(3, FAILED, 1), want(1, READY), want(2, UNLOADED)],
            step(Step.SWITCH, 1),
        ),
        ("the best one that is loaded", [want(3, FAILED, 1), want(1, READY), want(2, READY)], step(Step.SWITCH, 2)),
        ("else the best is loaded", [want(3, FAILED, 1), want(1, UNLOADED), want(2, UNLOADED)], step(Step.LOAD, 2)),
        (
            "then it is the next one's turn",
            [want(3, FAILED, 1), want(1, UNLOADED), want(2, FAILED, 1)],
            step(Step.LOAD, 1),
        ),
        ("and the champion's again", [want(3, FAILED, 1), want(1, FAILED, 2), want(2, FAILED, 2)], step(Step.LOAD, 3)),
        ("the champion itself comes first", [want(3, READY), want(2, READY)], step(Step.SWITCH, 3)),
        ("all failed for good", [want(number, FAILED, MOST_FAILURES) for number in (1, 2, 3)], None),
    ],
)
def test_in_need_the_fallbacks_step_in(
    what: str, snapshots: list[ServableSnapshot], expected: Transition | None
) -> None:
    assert next_transition(snapshots, champion=3, served=None, fallbacks=[2, 1]) == expected, what


def test_a_version_that_one_may_have_to_return_to_is_not_unloaded() -> None:
    snapshots = [leave(1, READY), want(2, READY)]
    assert next_transition(snapshots, champion=2, served=2, held=1) is None
    assert next_transition(snapshots, champion=2, served=2) == step(Step.UNLOAD, 1)


snapshots_of_any_kind = st.lists(
    st.builds(
        ServableSnapshot,
        number=st.integers(1, 6),
        state=st.sampled_from([UNLOADED, LOADING, READY, FAILED, DRAINING]),
        aspired=st.booleans(),
        failures=st.integers(0, MOST_FAILURES + 1),
    ),
    unique_by=lambda snapshot: snapshot.number,
)


@given(snapshots_of_any_kind, st.none() | st.integers(1, 6), st.none() | st.integers(1, 6))
def test_what_answers_now_is_never_unloaded_and_only_what_is_ready_is_switched_to(
    snapshots: list[ServableSnapshot], champion: int | None, served: int | None
) -> None:
    transition = next_transition(snapshots, champion=champion, served=served)
    if transition is None:
        return
    by_number = {snapshot.number: snapshot for snapshot in snapshots}
    match transition.step:
        case Step.UNLOAD:
            assert transition.number not in (served, champion)
            assert not by_number[transition.number].aspired
        case Step.SWITCH:
            assert by_number[transition.number].state is READY
        case Step.LOAD:
            assert by_number[transition.number].failures < MOST_FAILURES


def test_aspired_are_those_with_an_alias_and_the_newest() -> None:
    aliases = Aliases(generation=3, champion=2, challenger=None, previous=1, canary=4, shadow=5)
    assert aspired_versions(range(1, 10), aliases, keep=2) == {1, 2, 4, 5, 8, 9}
    assert aspired_versions([], Aliases(), keep=4) == frozenset()
