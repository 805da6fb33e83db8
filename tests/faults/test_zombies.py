"""Whoever lost the store writes nothing more, and says so with the exit code that asks for a new start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.faults.storage import ROOT
from tests.faults.zombies import STORIES, TEMPORARY


@pytest.mark.parametrize("story", STORIES)
def test_one_store_has_one_writer(tmp_path: Path, story: str) -> None:
    finding = STORIES[story](tmp_path, 0)
    assert finding.clean, finding


def test_a_second_learner_on_a_store_ends_with_the_code_for_a_lock(tmp_path: Path) -> None:
    """The real command. Nobody answers at the broker's address, and that is no reason not to start."""
    config = {
        "kafka": {"bootstrap_servers": ["127.0.0.1:9"], "topics": ["examples"]},
        "policy": str(ROOT / "policies" / "default.yaml"),
        "metrics": {"port": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "daemon", "learn", "--config", "config.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr
        for line in first.stderr:
            if "learner_started" in line:
                break
        second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        first.kill()
        first.communicate(timeout=60)
    assert second.returncode == TEMPORARY, second.stderr
    assert f"process {first.pid}" in second.stderr
