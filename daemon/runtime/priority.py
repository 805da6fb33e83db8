"""Which thread goes first when the processor is short. Linux: niceness is a thread's own, and inherited by threads it starts."""

import os
import threading
from collections.abc import Callable

_NICEST = 19


def yielding(body: Callable[[], None], *, by: int) -> Callable[[], None]:
    """`body`, to be run by a thread that lets the others of this process go first; `by` is added to the process's niceness.

    Not too far: a thread that waits for the processor while it holds the interpreter's lock keeps the others waiting too.
    """

    def gently() -> None:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(_NICEST, os.getpriority(os.PRIO_PROCESS, thread) + by))
        body()

    return gently
