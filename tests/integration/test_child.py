"""A child process is started apart from us, can always be stopped and does not outlive us."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.runtime.child import Child

ENV = {"PATH": os.environ["PATH"]}


def shell(script: str, tmp_path: Path, *, nice: int = 0) -> Child:
    return Child.start(["/bin/sh", "-c", script], log=tmp_path / "child.log", env=ENV, nice=nice)


def test_both_outputs_are_in_the_log_and_the_exit_code_is_returned(tmp_path: Path) -> None:
    child = shell("echo out; echo err >&2; exit 3", tmp_path)
    assert child.wait(5) == 3
    assert (tmp_path / "child.log").read_text().split() == ["out", "err"]


def test_a_child_gets_the_environment_it_is_given_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    assert shell('test -z "$SECRET"', tmp_path).wait(5) == 0


def test_waiting_gives_up_on_a_child_that_goes_on(tmp_path: Path) -> None:
    child = shell("exec sleep 60", tmp_path)
    assert child.wait(0.01) is None
    assert child.stop(grace=5) == -15


def test_a_child_that_ignores_sigterm_is_killed_with_all_it_has_started(tmp_path: Path) -> None:
    child = shell("trap '' TERM; sleep 60 & echo $!; wait; wait", tmp_path)
    while not (tmp_path / "child.log").read_text():
        assert child.wait(0.01) is None
    assert child.stop(grace=0.05) == -9
    grandchild = int((tmp_path / "child.log").read_text())
    assert not is_running(grandchild)


def test_a_child_yields_to_us(tmp_path: Path) -> None:
    child = shell("exec sleep 60", tmp_path, nice=7)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
    child.stop(grace=5)


def test_stopping_a_child_that_has_ended_returns_how_it_ended(tmp_path: Path) -> None:
    child = shell("exit 4", tmp_path)
    child.wait(5)
    assert child.stop(grace=5) == 4


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    waits = "from daemon.runtime.child import die_with_parent; import time; die_with_parent(); print(1, flush=True); time.sleep(60)"
    starts = f"""
import os, pathlib, sys, time
from daemon.runtime.child import Child
log = pathlib.Path({str(tmp_path / "child.log")!r})
child = Child.start([sys.executable, "-c", {waits!r}], log=log, env=dict(os.environ))
while not log.read_text():
    assert child.wait(0.01) is None, log.read_text()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, timeout=60, check=False)
    assert parent.returncode == -9, parent.stderr
    assert not is_running(int(parent.stdout))


def is_running(pid: int) -> bool:
    """False for one that is dead and only waits for its parent to ask. A signal takes a moment to arrive."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        ended, _, _ = select.select([descriptor], [], [], 5)
        return not ended
    finally:
        os.close(descriptor)
