from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from daemon.config import Config
from daemon.core.errors import UsageError
from daemon.demo.plan import FAST, FULL, Plan
from daemon.demo.workspace import LONGEST_SOCKET_PATH, Workspace, changed, make_workspace
from daemon.policy.schema import Policy


def make(folder: Path) -> Workspace:
    return make_workspace(folder, servers=["127.0.0.1:9"], topic="tweets", policy_changes={})


def test_the_config_is_valid_and_everything_lies_in_the_folder(tmp_path: Path) -> None:
    workspace = make(tmp_path / "demo")

    config = Config.model_validate(yaml.safe_load(workspace.config.read_text()))

    assert config.kafka.topics == ["tweets"]
    assert config.server.ready_file == workspace.ready_file
    for path in (config.policy, config.store.path, config.registry.path, config.runs.path):
        assert path.is_relative_to(tmp_path)


def test_the_last_demos_folder_is_removed_but_nothing_else_is(tmp_path: Path) -> None:
    (make(tmp_path / "demo").folder / "store.duckdb").touch()
    assert not (make(tmp_path / "demo").folder / "store.duckdb").exists()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").touch()
    with pytest.raises(UsageError, match="was not made by a demo"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "work.txt").exists()


def test_a_socket_path_that_is_too_long_for_the_system_goes_elsewhere() -> None:
    near, far = Workspace(Path("/a/demo")), Workspace(Path("/") / ("a" * 120))

    assert near.socket == Path("/a/demo/control.sock")
    assert len(str(far.socket).encode()) <= LONGEST_SOCKET_PATH
    assert far.socket == far.socket


def test_changes_reach_into_sections_and_leave_the_rest() -> None:
    policy = changed(
        {"training": {"epochs": 5, "seed": 3}, "triggers": {"cooldown": "1s"}}, {"training": {"epochs": 2}}
    )

    assert policy == {"training": {"epochs": 2, "seed": 3}, "triggers": {"cooldown": "1s"}}


def test_a_change_that_no_policy_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="epoch"):
        changed({}, {"training": {"epoch": 2}})


@pytest.mark.parametrize("plan", [FULL, FAST])
def test_what_a_plan_changes_fits_the_shipped_policy(plan: Plan) -> None:
    path = Path(__file__).parents[2] / "policies" / "demo.yaml"

    Policy.model_validate(changed(yaml.safe_load(path.read_text()), plan.policy_changes))
