"""Named places where a test can make the process die. Inert unless RELEARND_FAILPOINT names one: `before_commit:3` kills
the process, as kill -9 would, the third time it comes by.
"""

import os
import signal

ENVIRONMENT = "RELEARND_FAILPOINT"
_passes: dict[str, int] = {}


def failpoint(name: str) -> None:
    wanted, _, pass_number = os.environ.get(ENVIRONMENT, "").partition(":")
    if wanted != name:
        return
    _passes[name] = _passes.get(name, 0) + 1
    if _passes[name] >= int(pass_number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
