"""`relearnd run`: one learner and one server on one machine, started again when they die, stopped together."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from daemon.runtime.child import PARENT
from daemon.runtime.signals import stop_on_signals

log = structlog.get_logger(__name__)

FINAL_CODES = {64, 77, 78}  # usage, permission, configuration: starting again would fail again
FIRST_BACKOFF = 0.5  # seconds
LONGEST_BACKOFF = 30.0
STEADY = 60.0  # a child that lived so long starts with a fresh backoff
STOP_LIMIT = 60.0
POLL = 0.1


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    backoff: float = FIRST_BACKOFF
    started: float = 0.0
    start_at: float = field(default=0.0)

    def start(self) -> None:
        # In a process group of its own, so that a Ctrl-C reaches the supervisor alone, which then stops both in order.
        environment = {**os.environ, PARENT: str(os.getpid())}
        self.process = subprocess.Popen(self.command, start_new_session=True, env=environment)
        self.started = time.monotonic()
        log.info(f"{self.name} started, pid {self.process.pid}", action="child_started", child=self.name)

    def ended(self) -> int | None:
        """The exit code of a child that has just ended, once."""
        if self.process is None:
            return None
        code = self.process.poll()
        if code is not None:
            self.process = None
        return code

    def plan_restart(self, code: int) -> None:
        if time.monotonic() - self.started > STEADY:
            self.backoff = FIRST_BACKOFF
        log.warning(
            f"{self.name} ended with {code}; starting it again in {self.backoff:g} s", action="child_ended", code=code
        )
        self.start_at = time.monotonic() + self.backoff
        self.backoff = min(2 * self.backoff, LONGEST_BACKOFF)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL; returns the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            log.error(f"{self.name} did not stop within {STOP_LIMIT:g} s; killed", action="child_killed")
            self.process.kill()
            return self.process.wait()


def run_supervisor(config_path: Path) -> int:
    """Until SIGTERM or SIGINT: then the learner first, the server last, and 0 when both ended with 0.

    A child that ends with a code that a restart cannot mend stops everything; that code is returned.
    """
    children = [
        Child(name, [sys.executable, "-m", "daemon", name, "--config", str(config_path)]) for name in ("learn", "serve")
    ]
    with stop_on_signals() as stop:
        final = _supervise(children, stop)
    codes = [child.stop() for child in children]
    return final or max(abs(code) for code in codes)


def _supervise(children: list[Child], stop: threading.Event) -> int:
    """Keep the children running until told to stop (0) or until one ends for good (its code)."""
    for child in children:
        child.start()
    while not stop.wait(POLL):
        for child in children:
            code = child.ended()
            if code in FINAL_CODES:
                log.critical(f"{child.name} ended with {code}, which a restart cannot mend", action="child_failed")
                return code
            if code is not None:
                child.plan_restart(code)
            if child.process is None and time.monotonic() >= child.start_at:
                child.start()
    return 0
