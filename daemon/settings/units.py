"""What operators write and what the code gets: "6h" -> timedelta, "5%" -> 0.05, "2GiB" -> bytes."""

import math
import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
)

_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_LONGEST = timedelta(days=3650)
_LARGEST = 2**60


def _number_and_unit(text: str, units: str) -> tuple[float, str]:
    match = re.fullmatch(rf"\s*([0-9]+(?:\.[0-9]+)?)\s*({units})\s*", text)
    if not match:
        raise ValueError(
            f"write a number and a unit ({units.replace('|', ', ')}), for example "
            f"'{'6h' if 'h' in units.split('|') else '2GiB'}'; got '{text}'"
        )
    return float(match[1]), match[2]


def parse_duration(value: Any) -> timedelta:
    """'90s', '6h', '1.5d' -> timedelta. A bare number is refused: its unit would be a guess."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError(f"write a duration with its unit, for example '{value}s' or '6h'; got {value!r}")
    number, unit = _number_and_unit(value, "|".join(_DURATION_SECONDS))
    seconds = number * _DURATION_SECONDS[unit]
    if seconds > _LONGEST.total_seconds():
        raise ValueError(f"a duration is at most {format_duration(_LONGEST)}; got '{value}'")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """The largest unit that gives a whole number: timedelta(hours=6) -> '6h'. Exact, microseconds included."""
    for unit in ("w", "d", "h", "m", "s"):
        count, rest = divmod(value, timedelta(seconds=_DURATION_SECONDS[unit]))
        if count and not rest:
            return f"{count}{unit}"
    milliseconds, rest = divmod(value, timedelta(milliseconds=1))
    return f"{milliseconds}.{rest.microseconds:03d}ms" if rest else f"{milliseconds}ms"


def parse_share(value: Any) -> float:
    """'5%' or 0.05 -> 0.05, within [0, 1]."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+(\.[0-9]+)?\s*%\s*", value):
        share = float(value.strip().removesuffix("%")) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    else:
        raise ValueError(f"write a share as '5%' or 0.05; got {value!r}")
    if not (math.isfinite(share) and 0.0 <= share <= 1.0):
        raise ValueError(f"a share lies between 0% and 100%; got {value!r}")
    return share


def parse_size(value: Any) -> int:
    """'2GiB', '500MB' -> bytes. A bare number is refused."""
    if isinstance(value, bool) or not isinstance(value, str):
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"write a size with its unit, for example '{value}B' or '2GiB'; got {value!r}")
        raise ValueError(f"write a size as '2GiB' or '500MB'; got {value!r}")
    number, unit = _number_and_unit(value, "|".join(_SIZE_BYTES))
    size = number * _SIZE_BYTES[unit]
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"a size is more than 0B and at most {_LARGEST // 2**40}TiB; got '{value}'")
    return int(size)


def _not_nothing(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    parsed = parse(value)
    if not parsed:
        raise ValueError(f"write more than 0; got {value!r}")
    return parsed


# What editors are told (JSON Schema): the forms that operators write.
_DURATION_SCHEMA = {"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(_DURATION_SECONDS)})$"}
_SIZE_SCHEMA = {"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(_SIZE_BYTES)})$"}
_SHARE_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?%$"},
        {"type": "number", "minimum": 0, "maximum": 1},
    ]
}

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]
PositiveDuration = Annotated[Duration, WrapValidator(_not_nothing)]
Share = Annotated[float, BeforeValidator(parse_share), WithJsonSchema(_SHARE_SCHEMA)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(lambda size: f"{size}B", return_type=str),
    WithJsonSchema(_SIZE_SCHEMA),
]


class Section(BaseModel):
    """Part of a settings file: unknown keys are refused, values never change, defaults are checked like what is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as true and false, and Python takes those for 1 and 0."""
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(value).lower()} does not fit here; a word like yes or off is text only in quotes")
        return value


def written(default: str, description: str) -> Any:
    """A field whose default is given as operators write it ("6h", "5%"), parsed like what they write."""
    return Field(default, description=description)
