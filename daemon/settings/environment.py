"""Settings from the environment: PREFIX_SECTION__FIELD overrides the file. An unknown variable is a fault, not a silence."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from daemon.settings.yaml_reader import Place, parse_scalar


@dataclass(frozen=True, slots=True)
class Overrides:
    """Values by place, and the variable each came from."""

    values: Mapping[Place, Any] = field(default_factory=dict)
    names: Mapping[Place, str] = field(default_factory=dict)

    def laid_over(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of `values` with ours in their places."""
        merged = dict(values)
        for place, value in self.values.items():
            merged = _with(merged, place, value)
        return merged


def overrides(
    environment: Mapping[str, str], prefix: str, model: type[BaseModel], not_settings: Collection[str]
) -> Overrides:
    """Every variable that begins with `prefix`, but for `not_settings`."""
    values: dict[Place, Any] = {}
    names: dict[Place, str] = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(prefix) or name in not_settings:
            continue
        place: Place = tuple(name.removeprefix(prefix).lower().split("__"))
        values[place] = _parsed(text, _annotation(model, place))
        names[place] = name
    return Overrides(values, names)


def _with(values: Mapping[str, Any], place: Place, value: Any) -> dict[str, Any]:
    head, *rest = place
    inner = values.get(str(head))
    if rest:
        value = _with(inner if isinstance(inner, dict) else {}, tuple(rest), value)
    return {**values, str(head): value}


def _annotation(model: Any, place: Place) -> Any:
    for part in place:
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return None
        model = fields[part].annotation
    return model


def _parsed(text: str, annotation: Any) -> Any:
    """Text stays text where text is asked, a list is split at commas, all else is read as YAML reads it."""
    if get_origin(annotation) is list:
        return [item.strip() for item in text.split(",") if item.strip()]
    value = parse_scalar(text)
    return text if _takes_text(annotation) and value is not None else value


def _takes_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return str in get_args(annotation)
    return annotation is str
