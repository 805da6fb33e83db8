"""The failing disk: builds `shim.c`, arms it in a forked child, and makes of a folder what a power loss would leave."""

import ctypes
import errno
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

from daemon.core.errors import UnavailableError

SOURCE = Path(__file__).with_name("shim.c")
BUILT = Path(__file__).parents[2] / "build" / "faults" / "shim.so"
PAGE = 4096


class Kind(IntFlag):
    """Kinds of calls, as `shim.c` numbers them."""

    WRITES = 1
    SYNCS = 2
    SIZES = 4
    NAMES = 8
    ALL = 15


class Action(IntEnum):
    WATCH = 0
    KILL = 1
    TEAR = 2
    FAIL = 3
    FAIL_FROM_HERE = 4
    FAIL_AND_FORGET = 5


@dataclass(frozen=True)
class Fault:
    """What happens at the k-th call of these kinds. `power`: afterwards only the shadow is left, or random pages of the rest."""

    name: str
    kinds: Kind
    action: Action
    error: int = 0
    shadow: bool = False
    late_names: bool = False
    power: bool = False
    some_pages: bool = False


NOTHING = Fault("nothing", Kind.ALL, Action.WATCH)
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", Kind.ALL, Action.KILL),
        Fault("torn write", Kind.WRITES, Action.TEAR),
        Fault("failed sync", Kind.SYNCS, Action.FAIL, errno.EIO),
        Fault("failed sync, bytes gone", Kind.SYNCS, Action.FAIL_AND_FORGET, errno.EIO, shadow=True),
        Fault("disk full once", Kind.WRITES | Kind.SIZES, Action.FAIL, errno.ENOSPC),
        Fault("disk full", Kind.WRITES | Kind.SIZES, Action.FAIL_FROM_HERE, errno.ENOSPC),
        Fault("power loss", Kind.ALL, Action.KILL, shadow=True, power=True),
        Fault("power loss, names late", Kind.ALL, Action.KILL, shadow=True, power=True, late_names=True),
        Fault("power loss, some pages", Kind.ALL, Action.KILL, shadow=True, power=True, some_pages=True),
    )
}


def build() -> Path:
    """The compiled shim; compiled when it is not there or older than its source. Raises UnavailableError."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UnavailableError(
            "the storage faults need a C compiler: install one (Debian, Ubuntu: apt-get install gcc libc6-dev)"
        )
    if not BUILT.exists() or BUILT.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        whole = BUILT.with_name(f"{BUILT.name}.{os.getpid()}")
        command = [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(whole), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"the fault shim does not compile:\n{done.stderr[-2000:]}")
        whole.rename(BUILT)
    return BUILT


@cache
def _library() -> ctypes.CDLL:
    """The one that was loaded before everything else, so that it sees the calls of every library."""
    if str(BUILT) not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError(f"this process was not started with LD_PRELOAD={BUILT}")
    library = ctypes.CDLL(str(BUILT))
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_long, ctypes.c_int]
    library.fault_calls.restype = ctypes.c_long
    return library


def arm(fault: Fault, folder: Path, shadow: Path, at: int) -> None:
    _library().fault_arm(
        os.fsencode(folder),
        os.fsencode(shadow) if fault.shadow else b"",
        fault.kinds,
        fault.action,
        fault.error,
        at,
        fault.late_names,
    )


def all_is_durable(folder: Path, shadow: Path) -> None:
    """What is there before `arm` was there long enough for the disk to have everything."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder)).replace("/", "|")
        if path.is_dir():
            (shadow / f"{name}|").touch()
        else:
            shutil.copyfile(path, shadow / name)


def calls(kinds: Kind) -> int:
    """How many calls of these kinds there were since `arm`."""
    return sum(_library().fault_calls(int(kind)) for kind in kinds)


def lose_power(folder: Path, shadow: Path, *, some_pages: random.Random | None) -> None:
    """Leave in `folder` what was durable: the shadow, or of each file's later pages those that chance let through."""
    after = folder.with_name(f"{folder.name}.after")
    after.mkdir()
    durable = {path.name.replace("|", "/"): path for path in shadow.iterdir()}
    for name, path in durable.items():
        target = after / name
        if name.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if some_pages and (folder / name).is_file():
            _let_pages_through(folder / name, target, some_pages)
    shutil.rmtree(folder)
    after.rename(folder)


def _let_pages_through(written: Path, durable: Path, rng: random.Random) -> None:
    new, old = written.read_bytes(), durable.read_bytes()
    length = rng.choice([len(old), len(new)])
    pages = []
    for start in range(0, length, PAGE):
        stop = min(start + PAGE, length)
        choice = old if start >= len(new) or (start < len(old) and rng.random() < 0.5) else new
        pages.append(choice[start:stop].ljust(stop - start, b"\0"))
    durable.write_bytes(b"".join(pages))
