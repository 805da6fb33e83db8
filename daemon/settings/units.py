"""What operators write and what the code gets: "6h" -> timedelta, "5%" -> 0.05, "2GiB" -> bytes."""

import math
import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

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
    return timedelta(seconds=number * _DURATION_SECONDS[unit])


def format_duration(value: timedelta) -> str:
    """The shortest exact form: timedelta(hours=6) -> '6h'."""
    seconds = value.total_seconds()
    for unit in ("w", "d", "h", "m", "s"):
        if seconds >= _DURATION_SECONDS[unit] and seconds % _DURATION_SECONDS[unit] == 0:
            return f"{seconds / _DURATION_SECONDS[unit]:g}{unit}"
    return f"{seconds * 1000:g}ms"


def parse_share(value: Any) -> float:
    """'5%' or 0.05 -> 0.05, within [0, 1]."""
    if isinstance(value, str) and value.strip().endswith("%"):
        share = float(value.strip()[:-1]) / 100
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
    return int(number * _SIZE_BYTES[unit])


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]
Share = Annotated[float, BeforeValidator(parse_share)]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(lambda size: f"{size}B", return_type=str)]


class Section(BaseModel):
    """Part of a settings file: unknown keys are refused, values never change, defaults are checked like what is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def written(default: str, description: str) -> Any:
    """A field whose default is given as operators write it ("6h", "5%"), parsed like what they write."""
    return Field(default, description=description)
