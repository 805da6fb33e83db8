"""What pydantic found, in an operator's words: the value, the limit, and the key that was probably meant."""

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from daemon.settings.yaml_reader import Fault, Place

_LONGEST_SHOWN = 60

_ASKED = {
    "bool": "write true or false",
    "dict": "this is a section: write keys under it",
    "model": "this is a section: write keys under it",
    "float": "write a number",
    "finite": "write a finite number",
    "int": "write a whole number",
    "list": "write a list, for example [a, b]",
    "string": "write text, in quotes if it looks like a number, a date or a yes",
    "path": "write a path",
}
_COMPARED = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def faults(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """One for each error, in the order of the model's fields."""
    return [_fault(details, model) for details in error.errors(include_url=False)]


def _fault(details: ErrorDetails, model: type[BaseModel]) -> Fault:
    place = tuple(part for part in details["loc"] if part != "[key]")
    if details["type"] == "extra_forbidden":
        return Fault(place, unknown_key(place, model))
    return Fault(place, _reason(details))


def _reason(details: ErrorDetails) -> str:
    kind, context, got = details["type"], details.get("ctx", {}), _shown(details["input"])
    if kind == "missing":
        return "is missing; write it"
    if kind == "value_error":
        return str(context["error"])
    if details["input"] is None:
        return "is empty; write a value, or leave the key out"
    if kind == "literal_error":
        return f"must be {context['expected']}; got {got}{_closest_choice(details)}"
    if kind in _COMPARED:
        word, limit = _COMPARED[kind]
        return f"must be {word} {context[limit]}; got {got}"
    if kind == "too_short":
        return f"needs at least {context['min_length']}; got {context['actual_length']}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}; got {got}"
    asked = _ASKED.get(kind.split("_")[0])
    return f"{asked}; got {got}" if asked else f"{details['msg'][:1].lower()}{details['msg'][1:]}; got {got}"


def _closest_choice(details: ErrorDetails) -> str:
    choices = [choice.strip("'") for choice in details["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    return _meant(difflib.get_close_matches(str(details["input"]), choices, n=1))


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


# --- unknown keys -------------------------------------------------------------------------------------------------


def unknown_key(place: Place, model: type[BaseModel]) -> str:
    """Says which key was probably meant: one of the same section, or one of the same name elsewhere."""
    section, name = _section(model, place[:-1]), str(place[-1])
    known = list(section.model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    elsewhere = [f"'{'.'.join(map(str, path))}'" for path in _places(model) if path[-1] == name]
    if near:
        return f"unknown key{_meant(near)}"
    if elsewhere:
        return f"unknown key here; there is {' and '.join(elsewhere)}"
    return f"unknown key; known here: {', '.join(known)}"


def _meant(names: list[str]) -> str:
    return f"; did you mean '{names[0]}'?" if names else ""


def _section(model: type[BaseModel], place: Place) -> type[BaseModel]:
    for part in place:
        field = model.model_fields.get(str(part))
        model = (field and _inner(field.annotation)) or model
    return model


def _places(model: type[BaseModel], above: Place = ()) -> Iterator[Place]:
    for name, field in model.model_fields.items():
        here = (*above, name)
        yield here
        inner = _inner(field.annotation)
        if inner is not None and get_origin(field.annotation) is None:
            yield from _places(inner, here)


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The section inside a field: its own type, or that of a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, dict):
        return next((inner for inner in map(_inner, get_args(annotation)) if inner), None)
    return None
