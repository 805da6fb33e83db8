"""A sample of the storage sweep, and whether the sweep sees what it is there to see."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.invariants import Finding
from tests.faults.journal import Journal
from tests.faults.storage import Extent, Point, every_point, fork_servers, sample, sweep

POINTS = 14

pytestmark = pytest.mark.usefixtures("compiled")


def a_sample(extent: Extent) -> list[Point]:
    """Other points on each day that the sweep's extent changes; of every fault some."""
    points = every_point(extent, page_seeds=1, chains=4, seed=1)
    return sample(points, POINTS, seed=sum(extent.life.values()))


def test_no_fault_of_the_disk_loses_or_repeats_anything(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "played.jsonl", resume=False)) as journal:
        tally = sweep(a_sample, processes=2, journal=journal)
    assert tally.clean, "\n".join(tally.told)
    assert set(tally.by_fault) == {*shim.FAULTS, "one fault after another"}
    assert tally.total.points >= POINTS // 2, "lives differ by some calls, so not every blow meets one"


def test_a_sweep_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    played, left = (Point("kill", [("kill", at)], 1) for at in (5, 6))
    path = tmp_path / "played.jsonl"
    with closing(Journal(path, resume=False)) as journal:
        journal.note(played.where, 1, Finding(lost=7))
    with closing(Journal(path, resume=True)) as journal:
        tally = sweep(lambda _: [played, left], processes=1, journal=journal)
    assert (tally.total.points, tally.total.lost) == (2, 7), "one as it was noted, and one played"
    assert path.read_text().count("\n") == 2


def test_offsets_that_are_durable_before_their_rows_are_found_out(tmp_path: Path) -> None:
    with fork_servers(1, tmp_path) as (server,):
        opening, whole = server.measure(tmp_path / "life", "nothing")
        server.sabotage()
        first = sum(opening.values()) + 1
        found = [server.play(tmp_path / "life", Point("kill", [("kill", at)], 1))[1] for at in range(first, first + 6)]
    assert sum(whole.values()) > 200
    assert any(finding.lost for finding in found), found


def test_a_power_loss_takes_what_was_not_synced(tmp_path: Path, compiled: Path) -> None:
    """The shim itself, on plain files."""
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.faults import shim
folder, shadow = Path(sys.argv[1]) / "data", Path(sys.argv[1]) / "shadow"
folder.mkdir(), shadow.mkdir()
shim.arm(shim.FAULTS[sys.argv[2]], folder, shadow, at=11)
def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
(folder / "synced").write_bytes(b"kept")  # 1
sync(folder / "synced")  # 2
(folder / "never").write_bytes(b"gone")  # 3
(folder / "old").write_bytes(b"old")  # 4
sync(folder / "old")  # 5
(folder / "synced").write_bytes(b"later")  # 6
(folder / "old").rename(folder / "new")  # 7
made = folder / "made"
made.mkdir()
(made / "whole").write_bytes(b"whole")  # 8
sync(made / "whole")  # 9
made.rename(folder / "published")  # 10
(folder / "last").write_bytes(b"dies here")  # 11
"""
    left = {}
    for name in ("power loss", "power loss, names late"):
        root = tmp_path / name
        root.mkdir()
        died = subprocess.run(
            [sys.executable, "-c", script, str(root), name], env={"LD_PRELOAD": str(compiled)}, capture_output=True
        )
        assert died.returncode == -9, died.stderr
        shim.lose_power(root / "data", root / "shadow", some_pages=None)
        left[name] = {
            str(path.relative_to(root / "data")): path.read_bytes() if path.is_file() else None
            for path in (root / "data").rglob("*")
        }
    published = {"published": None, "published/whole": b"whole"}
    assert left["power loss"] == {"synced": b"kept", "new": b"old", **published}
    not_yet = {"made": None, "made/whole": b"whole"}
    assert left["power loss, names late"] == {"synced": b"kept", "old": b"old", **not_yet}
