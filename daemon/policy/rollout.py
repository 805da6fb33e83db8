"""What follows a verdict, and how the aliases move. Pure; `registry.move` compares and sets the generation."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from daemon.core.errors import UsageError
from daemon.core.states import Action, Outcome
from daemon.core.types import Aliases, Refusal, ServerReport, Verdict
from daemon.policy.schema import Policy

MOST_CANARY_SHARE = 0.5


def after_verdict(verdict: Verdict, policy: Policy) -> Action:
    """PROMOTE or ASK when every gate passed, as the policy says; REJECT otherwise, inconclusive included."""
    if verdict.outcome is not Outcome.PASS:
        return Action.REJECT
    return Action.ASK if policy.rollout.approval == "operator" else Action.PROMOTE


def promoted(aliases: Aliases, number: int, at: datetime, reason: str) -> Aliases:
    """`number` answers from now on. A waiting challenger loses its alias: it was judged against the old champion.

    Canary and shadow stay for the operator who set them, unless they are `number` itself.
    """
    previous = aliases.previous if aliases.champion == number else aliases.champion
    moved = replace(aliases, champion=number, previous=previous, challenger=None, moved_at=at, reason=reason)
    return _without_trial_of(number, moved)


def challenged(aliases: Aliases, number: int, at: datetime, reason: str) -> Aliases:
    """`number` passed its gates and waits for an operator."""
    return replace(aliases, challenger=number, moved_at=at, reason=reason)


def rejected(aliases: Aliases, number: int, at: datetime, reason: str) -> Aliases:
    """`number` is no challenger any more; another one stays."""
    challenger = None if aliases.challenger == number else aliases.challenger
    return replace(aliases, challenger=challenger, moved_at=at, reason=reason)


def rolled_back(aliases: Aliases, to: int | None, at: datetime, reason: str) -> Aliases:
    """`to`, or the previous version, answers again. The one left has no alias, so rolling back twice cannot return to it.

    A canary ends: in trouble everything comes from one known version. A shadow stays, unless it is `to`.

    Raises UsageError when there is no version to go back to, or it answers already.
    """
    target = aliases.previous if to is None else to
    if target is None:
        raise UsageError("there is no previous version to roll back to; name one: `relearnd rollback N`")
    if target == aliases.champion:
        raise UsageError(f"version {target} is the champion already; name another one")
    moved = replace(aliases, champion=target, previous=None, challenger=None, moved_at=at, reason=reason)
    return _without_trial_of(target, replace(moved, canary=None, canary_share=0.0))


def canaried(aliases: Aliases, number: int | None, share: float, at: datetime, reason: str) -> Aliases:
    """`number` answers `share` of the requests from now on; None: the champion answers all of them again. Raises UsageError."""
    if number is None:
        return replace(aliases, canary=None, canary_share=0.0, moved_at=at, reason=reason)
    _check_trial(aliases, number, "canary")
    if not 0 < share <= MOST_CANARY_SHARE:
        raise UsageError(f"a canary's share is above 0% and at most {MOST_CANARY_SHARE:.0%}; got {100 * share:.3g}%")
    return replace(aliases, canary=number, canary_share=share, moved_at=at, reason=reason)


def shadowed(aliases: Aliases, number: int | None, at: datetime, reason: str) -> Aliases:
    """`number` is compared with the champion on live requests, unheard; None: nothing is. Raises UsageError."""
    if number is not None:
        _check_trial(aliases, number, "shadow")
    return replace(aliases, shadow=number, moved_at=at, reason=reason)


def refusals(reports: Sequence[ServerReport], aliases: Aliases) -> Sequence[tuple[ServerReport, Refusal]]:
    """Who refuses the champion, and why. What a server said before it saw these aliases does not count."""
    told = [(report, report.refusal_of(aliases.champion)) for report in reports]
    return [(report, refusal) for report, refusal in told if refusal and report.generation == aliases.generation]


def _check_trial(aliases: Aliases, number: int, role: str) -> None:
    if aliases.champion is None:
        raise UsageError(f"there is no champion yet, so nothing can be its {role}; promote a version first")
    if aliases.champion == number:
        raise UsageError(f"version {number} is the champion; name another one as {role}")


def _without_trial_of(number: int, aliases: Aliases) -> Aliases:
    """What answers everything is neither canary nor shadow."""
    if aliases.canary == number:
        aliases = replace(aliases, canary=None, canary_share=0.0)
    return replace(aliases, shadow=None) if aliases.shadow == number else aliases
