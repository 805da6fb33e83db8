from datetime import UTC, datetime

import pytest

from daemon.core.errors import UsageError
from daemon.core.states import Action, Outcome
from daemon.core.types import Aliases, Verdict
from daemon.policy.rollout import after_verdict, challenged, promoted, rejected, rolled_back
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
