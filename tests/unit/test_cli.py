"""What the command line says when something is wrong, and which code it is."""

import json
import sys
from pathlib import Path

import pytest

from daemon import cli
from daemon.runtime.code import code_version, digest_of


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["relearnd", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def nobody(tmp_path: Path) -> str:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"control": {"socket": str(tmp_path / "none.sock")}}))
    return str(config)


def test_an_error_is_one_line_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nobody: str
) -> None:
    assert typed(monkeypatch, "status", "--config", nobody) == 69
    said = capsys.readouterr()
    assert said.err.startswith("relearnd: no learner answers")
    assert said.out == ""


def test_an_error_is_an_object_for_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nobody: str
) -> None:
    assert typed(monkeypatch, "status", "--config", nobody, "--json") == 69
    said = capsys.readouterr()
    error = json.loads(said.err)
    assert error["code"] == 69
    assert error["error"].startswith("no learner answers")
    assert said.out == ""


@pytest.mark.parametrize("words", [("demo", "--rate", "-3"), ("demo", "--rate", "0"), ("status", "--limit")])
def test_what_cannot_be_meant_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    def started(*_: object) -> int:
        raise AssertionError("the demo must not start")

    monkeypatch.setattr("daemon.demo.scenario.run_demo", started)
    assert typed(monkeypatch, *words) == 64


def test_the_version_names_the_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"relearnd {code_version()}\n"


def test_the_code_is_told_apart_by_every_file_of_it_and_by_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "part" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "part" / "b.sql").write_text("2")
    before = digest_of(tmp_path)
    (tmp_path / "part" / "__pycache__" / "b.pyc").write_bytes(b"compiled")
    assert digest_of(tmp_path) == before
    (tmp_path / "part" / "b.sql").write_text("3")
    changed = digest_of(tmp_path)
    (tmp_path / "part" / "b.sql").rename(tmp_path / "part" / "c.sql")
    assert len({before, changed, digest_of(tmp_path)}) == 3
