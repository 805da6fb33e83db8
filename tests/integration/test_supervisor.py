"""The supervisor's judgement of a child that has ended, with real but tiny processes."""

import sys
import threading

from daemon import supervisor
from daemon.supervisor import Child


def child(name: str, script: str) -> Child:
    return Child(name, [sys.executable, "-S", "-c", script])


def test_a_child_that_no_restart_can_mend_ends_everything_with_its_code() -> None:
    steady, broken = child("serve", "import time; time.sleep(60)"), child("learn", "raise SystemExit(78)")

    assert supervisor._supervise([steady, broken], threading.Event()) == 78
    assert steady.stop() == -15


def test_a_child_that_died_is_started_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lives, stop = tmp_path / "lives", threading.Event()
    script = f"""
import os, time
open({str(lives)!r}, "a").write("x")
if os.path.getsize({str(lives)!r}) < 2: os._exit(1)
time.sleep(60)
"""
    restarted = child("learn", script)

    watch = threading.Thread(target=lambda: (_wait_for(lives, 2), stop.set()))
    watch.start()
    assert supervisor._supervise([restarted], stop) == 0
    watch.join()
    assert lives.read_text() == "xx"
    assert restarted.backoff > supervisor.FIRST_BACKOFF
    assert restarted.stop() == -15


def _wait_for(path, size: int) -> None:  # type: ignore[no-untyped-def]
    pause = threading.Event()
    for _ in range(600):
        if path.exists() and path.stat().st_size >= size:
            return
        pause.wait(0.05)
