"""The version that last answered as it should, kept on this machine's disk: what to serve when the champion cannot be, or when
the registry does not say who it is. The files themselves stay in the registry, and are verified as always."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from daemon.core.types import ModelVersion
from daemon.runtime.files import write_whole
from daemon.runtime.records import decode, encode

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LastGood:
    version: ModelVersion
    at: datetime


@dataclass(frozen=True, slots=True)
class _State:
    models: Mapping[str, LastGood] = field(default_factory=dict)


class LastGoodFile:
    """One file for all models. Trouble with it is logged and changes nothing else: it is a help in need, not a source of truth."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, model: str) -> ModelVersion | None:
        last = self._read().models.get(model)
        return last.version if last else None

    def write(self, version: ModelVersion, at: datetime) -> None:
        models = {**self._read().models, version.model: LastGood(version, at)}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, encode(_State(models)))
        except OSError as error:
            log.warning(
                f"the last good version cannot be remembered in {self._path}: {error.strerror}; see server.state",
                action="state_not_written",
            )

    def _read(self) -> _State:
        try:
            return decode(self._path.read_bytes(), _State)
        except FileNotFoundError:
            return _State()
        except (OSError, msgspec.MsgspecError, UnicodeError) as error:
            log.warning(f"{self._path} cannot be read and is started anew: {error}", action="state_not_read")
            return _State()
