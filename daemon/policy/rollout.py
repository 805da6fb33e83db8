"""What follows a verdict, and how the aliases move. Pure; `registry.move` compares and sets the generation."""

from dataclasses import replace
from datetime import datetime

from daemon.core.errors import UsageError
from daemon.core.states import Action, Outcome
from daemon.core.types import Aliases, Verdict
from daemon.policy.schema import Policy


def after_verdict(verdict: Verdict, policy: Policy) -> Action:
    """PROMOTE or ASK when every gate passed, as the policy says; REJECT otherwise, inconclusive included."""
    if verdict.outcome is not Outcome.PASS:
        return Action.REJECT
    return Action.ASK if policy.rollout.approval == "operator" else Action.PROMOTE


def promoted(aliases: Aliases, number: int, at: datetime, reason: str) -> Aliases:
    """`number` answers from now on. A waiting challenger loses its alias: it was judged against the old champion."""
    previous = aliases.previous if aliases.champion == number else aliases.champion
    return replace(aliases, champion=number, previous=previous, challenger=None, moved_at=at, reason=reason)


def challenged(aliases: Aliases, number: int, at: datetime, reason: str) -> Aliases:
    """`number` passed its gates and waits for an operator."""
    return replace(aliases, challenger=number, moved_at=at, reason=reason)


def rejected(aliases: Aliases, number: int, at: datetime, reason: str) -> Aliases:
    """`number` is no challenger any more; another one stays."""
    challenger = None if aliases.challenger == number else aliases.challenger
    return replace(aliases, challenger=challenger, moved_at=at, reason=reason)


def rolled_back(aliases: Aliases, to: int | None, at: datetime, reason: str) -> Aliases:
    """`to`, or the previous version, answers again. The one left has no alias, so rolling back twice cannot return to it.

    Raises UsageError when there is no version to go back to, or it answers already.
    """
    target = aliases.previous if to is None else to
    if target is None:
        raise UsageError("there is no previous version to roll back to; name one: `relearnd rollback N`")
    if target == aliases.champion:
        raise UsageError(f"version {target} is the champion already; name another one")
    return replace(aliases, champion=target, previous=None, challenger=None, moved_at=at, reason=reason)
