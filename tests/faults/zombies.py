"""Two writers and one store: the second is kept out, and a first that slept through its end writes nothing more."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.invariants import Finding, check_coverage, dump
from tests.faults.life import ZERO, opened
from tests.faults.storage import ROOT

TEMPORARY = 75  # the exit code for a lock that is held, and for having been fenced off


class Writer:
    """A process of `tests.faults.writer`."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.writer", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hears(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def told(self, command: str) -> str:
        self._tell(command)
        return self.hears()

    def _tell(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self._tell("end")
        return self.ended()

    def ended(self) -> int:
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


class _Case:
    """What is expected, step by step; what is otherwise goes into the finding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finding = Finding()
        self.running: list[Writer] = []

    def writer(self) -> Writer:
        self.running.append(Writer(self.folder))
        return self.running[-1]

    def expect(self, found: object, wanted: object) -> None:
        if found != wanted:
            self.finding.broken.append(f"{found!r}, expected {wanted!r}")

    def stands_at(self, offset: int) -> None:
        store = opened(self.folder)
        check_coverage(store, dump(store), self.finding)
        stands = store.next_offsets().get(ZERO, 0)
        self.finding.lost += max(0, offset - stands)
        self.expect(stands, offset)
        store.close()


@contextmanager
def _case(folder: Path) -> Iterator[_Case]:
    case = _Case(folder)
    try:
        yield case
    finally:
        for writer in case.running:
            writer.kill()


def kept_out(folder: Path, number: int) -> Finding:
    """A second learner comes while the first sleeps longer than anybody would wait."""
    with _case(folder) as case:
        first = case.writer()
        case.expect(first.hears(), "open")
        case.expect(first.told(f"commit {10 + number}"), f"committed {10 + number}")
        first.stop()
        for _ in range(2):
            second = case.writer()
            case.expect(second.hears().split()[0], "failed")
            case.expect(second.ended(), TEMPORARY)
        first.go_on()
        case.expect(first.told("commit 10"), f"committed {20 + number}")
        case.expect(first.end(), 0)
        case.stands_at(20 + number)
    return case.finding


def fenced_off(folder: Path, number: int) -> Finding:
    """Another takes the store while the first sleeps and both locks are gone; the first wakes up while the heir writes."""
    return _fenced_off(folder, unsaved=10 + number, heir_lives=True)


def fenced_off_without_a_log(folder: Path, number: int) -> Finding:
    """The same with a first that had written nothing."""
    return _fenced_off(folder, unsaved=0, heir_lives=True)


def fenced_off_too_late(folder: Path, number: int) -> Finding:
    """The heir has come and gone before the first wakes up."""
    return _fenced_off(folder, unsaved=10 + number, heir_lives=False)


def _fenced_off(folder: Path, *, unsaved: int, heir_lives: bool) -> Finding:
    with _case(folder) as case:
        zombie = case.writer()
        case.expect(zombie.hears(), "open")
        if unsaved:
            case.expect(zombie.told(f"commit {unsaved}"), f"committed {unsaved}")
        case.expect(zombie.told("drop-duckdb-lock"), "dropped")
        zombie.stop()
        _replace_lock(folder)
        heir = case.writer()
        case.expect(heir.hears(), "open")
        case.expect(heir.told("commit 25"), f"committed {unsaved + 25}")
        if not heir_lives:
            case.expect(heir.end(), 0)
        zombie.go_on()
        case.expect(zombie.told("commit 3").split()[0], "failed")
        case.expect(zombie.ended(), TEMPORARY)
        if heir_lives:
            case.expect(heir.told("commit 5"), f"committed {unsaved + 30}")
            case.expect(heir.end(), 0)
        case.stands_at(unsaved + (30 if heir_lives else 25))
    return case.finding


def _replace_lock(folder: Path) -> None:
    """As a restored or copied data folder does: a lock file of the same name that nobody holds."""
    (lock,) = folder.glob("*.lock")
    copy = lock.with_name("copy")
    shutil.copyfile(lock, copy)
    copy.replace(lock)


STORIES: Mapping[str, Callable[[Path, int], Finding]] = {
    "kept out": kept_out,
    "fenced off": fenced_off,
    "fenced off without a log": fenced_off_without_a_log,
    "fenced off too late": fenced_off_too_late,
}
