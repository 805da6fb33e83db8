"""From a settings file to a frozen model: YAML, then the environment, then the model's own checks, all faults at once."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from daemon.core.errors import ConfigError
from daemon.settings.environment import Overrides, overrides
from daemon.settings.faults import faults
from daemon.settings.units import Section
from daemon.settings.yaml_reader import Document, Fault, Place, read_yaml

S = TypeVar("S", bound=Section)


def load_document(path: Path, model: type[S], env_prefix: str | None = None, not_settings: Collection[str] = ()) -> S:
    """The file as `model`, with variables that begin with `env_prefix` laid over it; `not_settings` are left alone.

    Raises ConfigError with one line a fault: `path:line: section.field: what is wrong, value, limit`.
    """
    document = read_yaml(path)
    laid = overrides(os.environ, env_prefix, model, not_settings) if env_prefix else Overrides()
    found = list(document.faults)
    try:
        settings = model.model_validate(laid.laid_over(document.values))
    except ValidationError as error:
        known = {fault.place for fault in found}
        found += [fault for fault in faults(error, model) if fault.place not in known]
    if found:
        found.sort(key=lambda fault: document.line(fault.place))
        raise ConfigError("\n".join(_line(path, fault, document, laid) for fault in found))
    return settings


def _line(path: Path, fault: Fault, document: Document, laid: Overrides) -> str:
    named = ".".join(map(str, fault.place)) or "the file"
    where = _variable(fault.place, document, laid) or f"{path}:{document.line(fault.place)}".removesuffix(":0")
    return f"{where}: {named}: {fault.reason}"


def _variable(place: Place, document: Document, laid: Overrides) -> str | None:
    """The environment variable that the fault came from, if it did: one for this place, around it, or the only reason for it."""
    for theirs, name in laid.names.items():
        if place[: len(theirs)] == theirs:
            return name
        if theirs[: len(place)] == place and place not in document.lines:
            return name
    return None
