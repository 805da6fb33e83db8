import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from daemon.runtime import memory
if sys.argv[1] == "shared":
    memory.share_one_heap()
kept, barrier = [], threading.Barrier(4)
def allocate():
    barrier.wait()
    kept.extend(ctypes.create_string_buffer(20_000) for _ in range(200))
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
c = ctypes.CDLL(None)
c.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(c.fdopen(1, b"w"))
c.malloc_info(0, stream)
c.fflush(stream)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library's heaps")
def test_threads_share_one_heap_once_asked_to() -> None:
    def heaps(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return done.stdout.count("<heap nr=")

    assert heaps("shared") == 1 < heaps("apart")
