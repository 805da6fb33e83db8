"""A loop of a process on a thread of its own, and what ended it."""

import threading
from collections.abc import Callable

import structlog

from daemon.core.errors import RelearndError, of_system

log = structlog.get_logger(__name__)


class Loop:
    """A loop on a thread of its own; remembers what ended it."""

    def __init__(self, name: str, stop: threading.Event, run: Callable[..., None], beat: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guard, args=(run, stop, beat), name=name, daemon=True)
        self._thread.start()

    def _guard(self, run: Callable[..., None], stop: threading.Event, beat: Callable[[], None]) -> None:
        try:
            run(stop, beat)
        except BaseException as error:
            self._error = error
            log.critical(f"the {self._thread.name} loop died: {error}", action="loop_died", exc_info=error)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def exit_code(self) -> int:
        """Of the process, if it were for this loop alone."""
        if self._error is None:
            return 70 if self._thread.is_alive() else 0
        error = of_system(self._error) if isinstance(self._error, OSError) else self._error
        return error.exit_code if isinstance(error, RelearndError) else 70
