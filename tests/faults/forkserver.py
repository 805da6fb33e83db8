"""Plays one life after another, each in a process of its own that is forked from here with everything imported already.

Started with the shim in LD_PRELOAD. A line of JSON in is one task; a line of JSON out says what came of it.
"""

import atexit
import gc
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from daemon.core.errors import RelearndError, StoreError
from daemon.store import duckdb_store
from daemon.store.backup import back_up, restore
from daemon.store.database_file import duckdb_options
from daemon.testing.clock import START
from tests.faults import life, shim
from tests.faults.invariants import Dump, Finding, Reference, Testimony, check_coverage, dump
from tests.faults.life import Witness

LIFE_LIMIT = 60  # seconds; a life that hangs is a finding


def main() -> None:
    life.prepare()
    gc.freeze()  # a child that collects garbage copies every page that it looks at
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(TASKS[task.pop("task")](**task)), flush=True)
    atexit._run_exitfuncs()
    os._exit(0)  # what is frozen would be reported as leaked


def measure(root: str, reference: str, begin: str) -> dict[str, dict[str, int]]:
    """The undisturbed life: how many calls of each kind it makes, and the store after each stage as the reference.

    "opening" are the calls until the store is open.
    """

    def play() -> dict[str, dict[str, int]]:
        stages: list[Dump] = []
        folder = _folder(root, begin)
        shim.arm(shim.NOTHING, folder, folder, at=0)
        store = life.opened(folder)
        opening = _calls()

        def after_stage(number: int) -> None:
            stages.append(dump(store))
            if number == 0:
                back_up(store.database, _backups(Path(reference)), START)

        life.live(folder, store, Witness(Path(root) / "witness"), after_stage=after_stage)
        store.close()
        Path(reference).write_bytes(pickle.dumps(Reference(stages)))
        return {"opening": opening, "all": _calls()}

    counted = _in_child(play)
    shutil.rmtree(root)
    if "all" not in counted:
        raise RuntimeError(f"the undisturbed life fails: {counted}")
    return counted


def _calls() -> dict[str, int]:
    return {kind.name or "": shim.calls(kind) for kind in shim.Kind if kind != shim.Kind.ALL}


def sabotage() -> dict[str, Any]:
    """From now on every store commits offsets in one transaction and rows in the next: the sweep must see it."""
    append = duckdb_store.append_batch

    def append_later(cursor: Any, *arguments: Any) -> Any:
        cursor.commit()
        cursor.begin()
        return append(cursor, *arguments)

    duckdb_store.append_batch = append_later
    return {}


def point(root: str, reference: str, begin: str, blows: list[tuple[str, int]], seed: int) -> dict[str, Any]:
    """One life with these faults one after the other, each in the life that the one before left; then it is held to account.

    The checks come after each blow, and once more when the life was allowed to end.
    """
    folder, witness = _folder(root, begin), Path(root) / "witness"
    struck, finding = 0, Finding()
    for number, (name, at) in enumerate(blows):
        fault, shadow = shim.FAULTS[name], Path(root) / f"shadow-{number}"
        shadow.mkdir()
        if fault.shadow:
            shim.all_is_durable(folder, shadow)
        outcome = _in_child(lambda fault=fault, shadow=shadow, at=at: _hurt(fault, folder, shadow, witness, at))
        struck += outcome.get("calls", at) >= at
        if "error" in outcome:
            finding.broken.append(outcome["error"])
        if fault.power and outcome.get("signal") == signal.SIGKILL:
            shim.lose_power(folder, shadow, some_pages=random.Random(seed) if fault.some_pages else None)
        last = number == len(blows) - 1
        if fault.some_pages and _in_child(lambda: _damaged(folder)).get("damaged"):
            finding.refused = True
            _in_child(lambda: _restore(folder, Path(reference)))
            witness.unlink(missing_ok=True)  # a life that was hurt early has none yet
        checked = _in_child(lambda last=last: _check(folder, witness, Path(reference), finish=last))
        finding.lost += checked.get("lost", 0)
        finding.twice += checked.get("twice", 0)
        finding.broken += checked.get("broken", []) or ([checked["error"]] if "error" in checked else [])
        if "signal" in checked:
            finding.broken.append(f"the check died of signal {checked['signal']}")
        if not finding.clean:
            break
    if finding.clean:
        shutil.rmtree(root)
    return {"struck": struck, "finding": asdict(finding)}


def _hurt(fault: shim.Fault, folder: Path, shadow: Path, witness: Path, at: int) -> dict[str, int]:
    shim.arm(fault, folder, shadow, at)
    try:
        store = life.opened(folder)
        life.live(folder, store, Witness(witness))
        store.close()
    except RelearndError as error:  # ends a learner, with a code of its own: somebody starts it again
        return {"calls": shim.calls(fault.kinds), "code": error.exit_code}
    except OSError as error:
        if shim.calls(fault.kinds) < at or error.errno != fault.error:
            raise
    return {"calls": shim.calls(fault.kinds), "code": 0}


def _damaged(folder: Path) -> dict[str, bool]:
    """Whether the store says of itself that it cannot be opened."""
    try:
        life.opened(folder).close()
    except StoreError:
        return {"damaged": True}
    return {}


def _restore(folder: Path, reference: Path) -> dict[str, Any]:
    """What an operator does then; the rest comes from the log again."""
    (backup,) = _backups(reference).iterdir()
    restore(backup, folder / life.STORE, duckdb_options(1 << 28, 1), START)
    return {}


def _backups(reference: Path) -> Path:
    return reference.with_name(f"backups of {reference.name}")


def _check(folder: Path, witness: Path, reference: Path, *, finish: bool) -> dict[str, Any]:
    finding, said = Finding(), Testimony.read(witness)
    undisturbed: Reference = pickle.loads(reference.read_bytes())  # noqa: S301 (our own, a moment old)
    store = life.opened(folder)
    found = dump(store)
    check_coverage(store, found, finding)
    said.check(found, life.epoch(store), finding)
    undisturbed.check_content(found, said.ended, said.began, finding)
    if finding.clean and finish:
        life.live(folder, store, Witness(witness))
        found = dump(store)
        check_coverage(store, found, finding)
        undisturbed.check_end(found, finding)
    store.close()
    return asdict(finding)


def _folder(root: str, begin: str) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    folder = Path(root) / "data"
    folder.mkdir(parents=True)
    if begin == "schema 1":
        shutil.copyfile(_old_store(), folder / life.STORE)
    return folder


@cache
def _old_store() -> Path:
    """Made once, and in a child: this process opens no database."""
    folder = Path(tempfile.mkdtemp(prefix="relearnd-schema-1-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def make() -> dict[str, Any]:
        life.begin_with_schema_1(folder)
        return {}

    if made := _in_child(make):
        raise RuntimeError(f"no store of schema 1: {made}")
    return folder / life.STORE


def _in_child(play: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `play` returned in a process of its own; its error, or the signal it died of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(LIFE_LIMIT)
        try:
            result = play()
        except BaseException:
            result = {"error": traceback.format_exc()[-1500:]}
        with os.fdopen(writing, "w") as out:
            json.dump(result, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return {"error": f"it hung for {LIFE_LIMIT} s"}
    return json.loads(said) if said else {"signal": os.WTERMSIG(status)}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"measure": measure, "point": point, "sabotage": sabotage}

if __name__ == "__main__":
    main()
