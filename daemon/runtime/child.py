"""A child process that cannot outlive or outrank us: its own process group, a nice value, a log file, and dead when we are."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

PARENT = "RELEARND_PARENT_PID"
"""In a child's environment: whose death it goes by."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Child:
    """Its group is asked and killed as a whole, so what the child starts goes with it. Used by one thread."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, command: Sequence[str], *, log: Path, env: Mapping[str, str], nice: int = 0) -> Self:
        """Both outputs go to the end of `log`; there is no input. Raises OSError when the command cannot be started.

        A child that calls `die_with_parent` dies when the *thread* that called this ends, so wait for it on that thread.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**env, PARENT: str(os.getpid())},
                process_group=0,
            )
        if nice:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout: float) -> int | None:
        """The exit code (minus the signal that killed it), None when it still runs after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace: float) -> int:
        """SIGTERM to the group, SIGKILL after `grace` seconds; returns the exit code. Safe when it has ended already."""
        self._signal(signal.SIGTERM)
        if self.wait(grace) is None:
            self._signal(signal.SIGKILL)
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:  # else the group's number may be somebody else's by now
            os.killpg(self._process.pid, number)


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Called by a child at its start: the kernel sends it `how` when the parent is gone.

    Nothing happens in a process started by hand.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, how) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):  # it went before we asked
        os.kill(os.getpid(), how)
