import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from daemon.demo import scenario
from daemon.demo.brokers import Broker
from daemon.demo.report import Ledger, broken_promises
from daemon.demo.scenario import DemoOptions, Interrupted, Result, Setting, run_demo
from daemon.demo.workspace import Workspace
from tests.unit.demo_simulation import PLAN, Show

Perform = Callable[..., Result]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Perform], tuple[int, str]]:
    """Runs a demo whose processes are replaced by `perform`; gives the exit code and what was told."""
    broker = Broker("tansu", ["127.0.0.1:9"])
    monkeypatch.setattr(scenario, "_broker", lambda options: nullcontext(broker))
    monkeypatch.setattr(scenario, "_set_up", lambda *_: Setting(PLAN, {}, broker, "tweets", Workspace(tmp_path)))

    def run(perform: Perform) -> tuple[int, str]:
        monkeypatch.setattr(scenario, "_perform", perform)
        console = Console(file=io.StringIO(), record=True, width=200)
        code = run_demo(DemoOptions(out=tmp_path), console)
        return code, console.export_text()

    return run


def performed(show: Show) -> Result:
    missing = show.play()
    story = show.journal.story()
    produced = len(story.produced_at)
    found = Ledger(len(show.written), 3, stored=produced, dead_lettered=3, lost=0, twice=0)
    return Result(story, found, broken_promises(story, found, missing, exit_code=0))


def test_all_promised_rounds_are_exit_code_0(demo: Callable[[Perform], tuple[int, str]], tmp_path: Path) -> None:
    code, told = demo(lambda *_: performed(Show(["pass"] * 3, drift_on=PLAN.sources)))

    assert code == 0
    assert "every promise of the scenario was kept" in told
    assert len(json.loads((tmp_path / "demo.json").read_text())["rounds"]) == 2
    assert (tmp_path / "demo.html").exists()


def test_a_missing_round_is_exit_code_1_and_a_sentence(
    demo: Callable[[Perform], tuple[int, str]], tmp_path: Path
) -> None:
    code, told = demo(lambda *_: performed(Show(["pass", "pass"], drift_on=["coachella"])))

    assert code == 1
    assert "not as promised: a promised round did not happen: apple: no run was started" in told
    rounds = json.loads((tmp_path / "demo.json").read_text())["rounds"]
    assert [one["seconds_drift_to_serving"] is None for one in rounds] == [False, True]


def test_a_demo_stopped_from_outside_is_exit_code_130(
    demo: Callable[[Perform], tuple[int, str]], tmp_path: Path
) -> None:
    def perform(*_: object) -> Result:
        raise Interrupted

    code, told = demo(perform)

    assert (code, "stopped" in told) == (130, True)
    assert not (tmp_path / "demo.json").exists()
