"""Cron schedules, checked when the policy is read and without the scheduler that will follow them.

Five fields: minute, hour, day of month, month, day of week. Each is `*`, a value, a range `a-b`, either with a step `/n`,
or several of these with commas. Days of the week are names only: whether 0 is Sunday or Monday is a matter of who reads it.
"""

import re
from dataclasses import dataclass

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()
    numbers: bool = True

    def number(self, text: str) -> int:
        """The value of a name or a number; names count from `first`."""
        if text.lower() in self.names:
            return self.first + self.names.index(text.lower())
        if not self.numbers:
            raise ValueError(f"{self.name} '{text}': write days as names, {', '.join(self.names)}")
        if not re.fullmatch(r"[0-9]{1,4}", text) or not self.first <= int(text) <= self.last:
            raise ValueError(f"{self.name} '{text}' is not between {self.first} and {self.last}")
        return int(text)


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 6, _DAYS, numbers=False),
)


def checked(cron: str) -> str:
    """The schedule itself. Raises ValueError naming the field that cannot be."""
    parts = cron.split()
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"a schedule has five fields (minute, hour, day of month, month, day of week); '{cron}' has {len(parts)}"
        )
    for field, part in zip(_FIELDS, parts, strict=True):
        for expression in part.split(","):
            _check(field, expression)
    return cron


def _check(field: _Field, expression: str) -> None:
    values, slash, step = expression.partition("/")
    first, dash, last = values.partition("-")
    if values == "*":
        low, high = field.first, field.last
    else:
        low = field.number(first)
        high = field.number(last) if dash else (field.last if slash else low)
    if low > high:
        raise ValueError(f"{field.name} '{expression}': a range goes from low to high")
    if slash:
        _check_step(field, expression, step, named=not first.isdigit() and values != "*", widest=high - low)


def _check_step(field: _Field, expression: str, step: str, *, named: bool, widest: int) -> None:
    if named:
        raise ValueError(f"{field.name} '{expression}': names take no step")
    if not re.fullmatch(r"[0-9]{1,4}", step) or not 1 <= int(step) <= widest:
        raise ValueError(f"{field.name} '{expression}': the step is a whole number from 1 to {widest}")
