"""Frozen types as JSON files of ours. JSON has no NaN and msgspec writes null for it; here it is kept, as the string "nan"."""

import math
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Indented JSON with a final line break; `decode` gives an equal value, non-finite numbers included."""
    return msgspec.json.format(msgspec.json.encode(_finite(msgspec.to_builtins(value)))) + b"\n"


def decode(content: bytes, kind: type[T]) -> T:
    """Raises msgspec.MsgspecError or UnicodeError."""
    return msgspec.json.decode(content, type=kind, strict=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
