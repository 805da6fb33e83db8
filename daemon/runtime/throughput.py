"""Settings of a process through which a stream runs: hundreds of thousands of small objects a second, all of them short-lived.

Measured at 160 and 2000 bytes a record: without them ingest takes a third more time, at 2000 bytes twice as much.
"""

import atexit
import ctypes
import gc
import sys

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT = 64 << 20  # bytes of freed memory that are kept for the next batch
_MAPPED_FROM = 32 << 20  # bytes from which a piece of memory is one of its own; more is not possible
_READERS = 2  # threads of Arrow that parse JSON, beside the one that reads and the one that commits


def prepare_for_a_stream() -> None:
    """Call it once, when everything is imported.

    The garbage collector looks at what is there already no more, and seldom at the rest: records form no cycles. The C library
    keeps the memory of one batch for the next, because the kernel takes longer to give out fresh pages than a batch to be
    read. A thread that waits for the interpreter gets it after a millisecond: a commit would wait many times for five.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.set_threshold(400_000, 5, 20)
    sys.setswitchinterval(0.001)
    pa.set_cpu_count(_READERS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _MAPPED_FROM)
