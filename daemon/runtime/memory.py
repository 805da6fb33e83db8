"""How much memory this process has and may still take. Linux; bytes throughout."""

import ctypes
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

_PAGE = 4096
_LINE = 200  # bytes, longer than it ever is
_M_ARENA_MAX = -8  # malloc.h
_ROOT = Path("/")
_NO_LIMIT = 1 << 60  # version 1 of cgroups writes a number close to 2**63 for none


def resident() -> int:
    """What this process holds in memory now. After the first time it can be told also when no more files can be opened."""
    return int(os.pread(_statistics_of(os.getpid()), _LINE, 0).split()[1]) * _PAGE


@cache
def _statistics_of(process: int) -> int:
    return os.open(f"/proc/{process}/statm", os.O_RDONLY | os.O_CLOEXEC)


def available(root: Path = _ROOT) -> int:
    """What may still be taken before the machine or a memory limit of a control group above us says no.

    The page cache counts as free, as it does for the kernel: it gives that back before it kills.
    """
    return min(_machine(root), *_groups(root), _NO_LIMIT)


def share_one_heap() -> None:
    """Let threads share what one of them freed; the C library gives each a heap of its own otherwise. Before they are started."""
    options = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if options:
        options(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed memory to the machine; the C library keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _machine(root: Path) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else _NO_LIMIT


def _groups(root: Path) -> Iterator[int]:
    """What is left in each control group that we are in, versions 1 and 2."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(mounted, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(mounted / "memory", path, *files)


def _left(mounted: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    """From our group up to the topmost one; inside a container ours may be mounted as the topmost."""
    group = mounted / path.strip("/")
    for folder in (group, *group.parents):
        most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
        if most.isdigit() and used.isdigit() and int(most) < _NO_LIMIT:
            yield int(most) - int(used) + _statistics(folder / "memory.stat").get(cache, 0)
        if folder == mounted:
            return


def _statistics(path: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _read(path: Path) -> str:
    """What the kernel does not offer here is empty."""
    try:
        return path.read_text()
    except OSError:
        return ""
