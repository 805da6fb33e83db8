from datetime import UTC, datetime

import pytest

from daemon.core.errors import UsageError
from daemon.core.states import Action, Outcome
from daemon.core.types import Aliases, Verdict
from daemon.policy.rollout import (
    after_verdict,
    canaried,
    challenged,
    promoted,
    rejected,
    rolled_back,
    shadowed,
)
from daemon.policy.schema import Policy

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AUTOMATIC = Policy()
BY_HAND = Policy.model_validate({"rollout": {"approval": "operator"}})


@pytest.mark.parametrize(
    ("outcome", "policy", "action"),
    [
        (Outcome.PASS, AUTOMATIC, Action.PROMOTE),
        (Outcome.PASS, BY_HAND, Action.ASK),
        (Outcome.FAIL, AUTOMATIC, Action.REJECT),
        (Outcome.FAIL, BY_HAND, Action.REJECT),
        (Outcome.INCONCLUSIVE, AUTOMATIC, Action.REJECT),
        (Outcome.INCONCLUSIVE, BY_HAND, Action.REJECT),
    ],
)
def test_only_a_pass_promotes_or_asks(outcome: Outcome, policy: Policy, action: Action) -> None:
    assert after_verdict(Verdict(outcome, ()), policy) is action


def names(aliases: Aliases) -> tuple[int | None, int | None, int | None]:
    return aliases.champion, aliases.challenger, aliases.previous


def test_each_move_keeps_the_generation_it_read_and_says_when_and_why() -> None:
    before = Aliases(generation=7, champion=2, challenger=None, previous=1)
    for after in (
        promoted(before, 3, NOW, "run r3"),
        challenged(before, 3, NOW, "run r3"),
        rejected(before, 3, NOW, "run r3"),
        rolled_back(before, None, NOW, "run r3"),
    ):
        assert (after.generation, after.moved_at, after.reason) == (7, NOW, "run r3")


def test_a_promotion_makes_the_champion_previous_and_ends_a_waiting_challenge() -> None:
    assert names(promoted(Aliases(), 1, NOW, "")) == (1, None, None)
    assert names(promoted(Aliases(champion=1, challenger=2), 3, NOW, "")) == (3, None, 1)


def test_a_promotion_carried_out_twice_does_not_lose_the_previous_version() -> None:
    once = promoted(Aliases(champion=1), 2, NOW, "")
    assert promoted(once, 2, NOW, "") == once


def test_a_challenger_waits_and_only_its_own_rejection_ends_that() -> None:
    waiting = challenged(Aliases(champion=1), 2, NOW, "")
    assert names(waiting) == (1, 2, None)
    assert names(rejected(waiting, 3, NOW, "")) == (1, 2, None)
    assert names(rejected(waiting, 2, NOW, "")) == (1, None, None)


def test_rolling_back_returns_to_the_previous_version_once() -> None:
    back = rolled_back(Aliases(champion=2, challenger=3, previous=1), None, NOW, "")
    assert names(back) == (1, None, None)
    with pytest.raises(UsageError, match="no previous version"):
        rolled_back(back, None, NOW, "")


def test_rolling_back_to_a_named_version_needs_no_previous_one() -> None:
    assert names(rolled_back(Aliases(champion=5), 2, NOW, "")) == (2, None, None)
    with pytest.raises(UsageError, match="version 5 is the champion already"):
        rolled_back(Aliases(champion=5, previous=2), 5, NOW, "")


# --- canary and shadow ---

TRIED = Aliases(champion=2, previous=1, canary=3, canary_share=0.1, shadow=4)


def trials(aliases: Aliases) -> tuple[int | None, float, int | None]:
    return aliases.canary, aliases.canary_share, aliases.shadow


def test_a_trial_begins_and_ends_by_an_operator_s_word() -> None:
    tried = shadowed(canaried(Aliases(champion=2), 3, 0.1, NOW, "try"), 4, NOW, "try")
    assert trials(tried) == (3, 0.1, 4)
    assert trials(canaried(tried, None, 0.0, NOW, "")) == (None, 0.0, 4)
    assert trials(shadowed(tried, None, NOW, "")) == (3, 0.1, None)


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, float("nan"), float("inf")])
def test_a_canary_has_a_small_share(share: float) -> None:
    with pytest.raises(UsageError, match="at most 50%"):
        canaried(Aliases(champion=2), 3, share, NOW, "")


def test_the_champion_is_on_no_trial_and_there_is_none_without_a_champion() -> None:
    for aliases, says in ((Aliases(champion=3), "is the champion"), (Aliases(), "no champion yet")):
        with pytest.raises(UsageError, match=says):
            canaried(aliases, 3, 0.1, NOW, "")
        with pytest.raises(UsageError, match=says):
            shadowed(aliases, 3, NOW, "")


def test_a_promotion_ends_the_trial_of_the_promoted_version_and_no_other() -> None:
    assert trials(promoted(TRIED, 3, NOW, "")) == (None, 0.0, 4)
    assert trials(promoted(TRIED, 4, NOW, "")) == (3, 0.1, None)
    assert trials(promoted(TRIED, 5, NOW, "")) == (3, 0.1, 4)


def test_a_roll_back_ends_every_canary_and_keeps_a_shadow_that_it_does_not_return_to() -> None:
    assert trials(rolled_back(TRIED, None, NOW, "")) == (None, 0.0, 4)
    assert trials(rolled_back(TRIED, 4, NOW, "")) == (None, 0.0, None)
