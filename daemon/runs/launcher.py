"""Runs a worker on a run folder: starts it, follows its progress, holds it to its limits, says why it failed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon.core.errors import RunCancelled, RunError
from daemon.core.types import Progress, RunResult, RunSpec
from daemon.policy.schema import TrainingPolicy
from daemon.runs.cancellation import Cancellation
from daemon.runs.run_folder import RunFolder
from daemon.runtime.child import Child

log = structlog.get_logger(__name__)

STOPPED = 75
"""Exit code of a worker that ended because of a SIGTERM."""

_LOOK_EVERY = 0.2  # seconds
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL

# What a worker gets of our environment: where things are, never how to reach brokers or whatever else is secret.
_INHERITED = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"}
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HF_", "TRANSFORMERS_", "XDG_")


def worker_command(python: Path | None) -> list[str]:
    """`python`: an interpreter with torch and this package; None: ours. The run folder follows as the only argument."""
    # -P: a folder called `daemon` where we were started is not ours
    return [str(python or sys.executable), "-P", "-m", "daemon.worker"]


def worker_environment(ours: Mapping[str, str], *, threads: int) -> dict[str, str]:
    """Nothing calls home or reaches a model hub, unless HF_HUB_OFFLINE=0 is ours."""
    inherited = {
        name: value for name, value in ours.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    return {
        "HF_HUB_OFFLINE": "1",
        **inherited,
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with a fixed workspace
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
    }


class WorkerLauncher:
    """Implements `ports.Trainer`."""

    def __init__(self, command: Sequence[str], *, nice: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`command` is given the run folder as its last argument; see `worker_command`."""
        self._command = command
        self._nice = nice
        self._monotonic = monotonic
        self._cancellation = Cancellation()
        self.expect = self._cancellation.expect
        self.cancel = self._cancellation.ask
        self.check = self._cancellation.check

    def train(self, folder: Path, spec: RunSpec, on_progress: Callable[[Progress], None]) -> RunResult:
        run = RunFolder(folder.absolute())
        policy = run.read_policy().training
        self.expect(spec.run_id)
        self.check()
        child = self._start(run, policy.threads)
        try:
            code = _Watch(run, policy, child, self.check, self._monotonic).until_gone(on_progress)
        finally:
            child.stop(_GRACE)
        self.check()  # who ended the worker may have stopped us, too: then that is why
        return _result(run, spec, code)

    def give_room_back(self, folder: Path) -> None:
        RunFolder(folder.absolute()).give_room_back()

    def _start(self, run: RunFolder, threads: int) -> Child:
        command = [*self._command, str(run.path)]
        try:
            child = Child.start(
                command, log=run.log, env=worker_environment(os.environ, threads=threads), nice=self._nice
            )
        except OSError as error:
            raise RunError(f"the worker cannot be started with {command[0]}: {error}; see worker.python") from error
        log.info(f"worker {child.pid} started", action="worker_started", pid=child.pid, run=run.path.name)
        return child


@dataclass(frozen=True, slots=True)
class _Watch:
    run: RunFolder
    policy: TrainingPolicy
    child: Child
    check_cancelled: Callable[[], None]
    monotonic: Callable[[], float]

    def until_gone(self, on_progress: Callable[[Progress], None]) -> int:
        """The exit code, after the last progress line was handed on. Raises RunCancelled or RunError at a limit."""
        started = last_sign = self.monotonic()
        code: int | None = None
        for progress in self.run.follow_progress():
            if progress is not None:
                last_sign = self.monotonic()
                on_progress(progress)
            elif code is not None:
                break
            else:
                self._check_limits(started, last_sign)
                code = self.child.wait(_LOOK_EVERY)
        assert code is not None
        return code

    def _check_limits(self, started: float, last_sign: float) -> None:
        self.check_cancelled()
        now = self.monotonic()
        time_limit, stall_limit = self.policy.time_limit.total_seconds(), self.policy.stall_limit.total_seconds()
        if now - started > time_limit:
            raise RunError(f"the worker ran for more than {time_limit:g}s; raise training.time_limit or train on less")
        if now - last_sign > stall_limit:
            raise RunError(
                f"the worker made no progress for {stall_limit:g}s; it hangs, or training.stall_limit is too small"
            )


def _result(run: RunFolder, spec: RunSpec, code: int) -> RunResult:
    if code == STOPPED:
        raise RunCancelled("the worker was told to stop")
    if code < 0:
        raise RunError(f"the worker was killed by {signal.Signals(-code).name}; its last words: {last_words(run.log)}")
    if code > 0:
        raise RunError(f"the worker failed with exit code {code}: {last_words(run.log)}")
    result = run.read_result()
    if result.run_id != spec.run_id:
        raise RunError(f"{run.path} holds the result of run {result.run_id}, not of {spec.run_id}")
    return result


def last_words(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "none")
