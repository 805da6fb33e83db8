"""The version that last answered as it should, kept on this machine's disk: what to serve when the champion cannot be, or when
the registry does not say who it is. The files themselves stay in the registry, and are verified as always.

Beside it stand the loads that have begun and not ended: what a load that ends the process leaves behind.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
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
class Loads:
    """Under one generation of the aliases. `unended` counts by a version's digest how often its load began and did not end."""

    generation: int = 0
    unended: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _State:
    models: Mapping[str, LastGood] = field(default_factory=dict)
    loads: Mapping[str, Loads] = field(default_factory=dict)


def _nothing() -> None:
    """While nothing is loaded."""


class LastGoodFile:
    """One file for all models. Trouble with it is logged and changes nothing else: it is a help in need, not a source of truth.

    Used by the manager's thread; `leave` from any.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changing = threading.RLock()
        self._cut_off: Callable[[], None] = _nothing  # what is to be noted of the load that is going on
        self._leaving = False

    def read(self, model: str) -> ModelVersion | None:
        last = (self._read() or _State()).models.get(model)
        return last.version if last else None

    def write(self, version: ModelVersion, at: datetime) -> None:
        with self._changing:
            if state := self._read():
                self._write(replace(state, models={**state.models, version.model: LastGood(version, at)}))

    def unended(self, version: ModelVersion, generation: int) -> int:
        """How many loads of it have begun and not ended since the aliases came to this generation."""
        loads = (self._read() or _State()).loads.get(version.model, Loads())
        return loads.unended.get(version.digest, 0) if loads.generation == generation else 0

    @contextmanager
    def loading(self, version: ModelVersion, generation: int) -> Iterator[None]:
        """Around a load; however it ends, it has, unless the process ends first."""
        before = self.unended(version, generation)
        with self._changing:
            self._note(version, generation, before if self._leaving else before + 1)
            self._cut_off = partial(self._note, version, generation, before)
        try:
            yield
        finally:
            with self._changing:
                self._cut_off = _nothing
                self._note(version, generation, 0)

    def leave(self) -> None:
        """The process is about to end, and not by the load that may be going on."""
        with self._changing:
            self._leaving = True
            self._cut_off()

    def _note(self, version: ModelVersion, generation: int, unended: int) -> None:
        if (state := self._read()) is None:
            return
        loads = state.loads.get(version.model, Loads())
        others = loads.unended if loads.generation == generation else {}
        counts = {digest: count for digest, count in {**others, version.digest: unended}.items() if count}
        self._write(replace(state, loads={**state.loads, version.model: Loads(generation, counts)}))

    def _write(self, state: _State) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, encode(state))
        except OSError as error:
            log.warning(
                f"nothing can be remembered in {self._path}: {error.strerror}; see server.state",
                action="state_not_written",
            )

    def _read(self) -> _State | None:
        """None when it may be readable the next time: what it holds is not to be written over."""
        try:
            return decode(self._path.read_bytes(), _State)
        except FileNotFoundError:
            return _State()
        except OSError as error:
            log.warning(f"{self._path} cannot be read now: {error.strerror}; see server.state", action="state_not_read")
            return None
        except (msgspec.MsgspecError, UnicodeError) as error:
            log.warning(f"{self._path} cannot be read and is started anew: {error}", action="state_not_read")
            return _State()
