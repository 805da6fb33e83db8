"""relearnd policy, relearnd config: files one writes by hand."""

import json
import sys
from pathlib import Path

import typer

from daemon.commands.options import Json, say
from daemon.config import Config, load_config

app = typer.Typer()
policy = typer.Typer(help="Policy files.", no_args_is_help=True)
config = typer.Typer(help="Config files.", no_args_is_help=True)
app.add_typer(policy, name="policy")
app.add_typer(config, name="config")


@policy.command("check")
def check_policy(file: Path, as_json: Json = False) -> None:
    """Say everything that is wrong with a policy file, or that nothing is."""
    from daemon.policy.load import load_policy

    checked = load_policy(file)
    say({"ok": True, "path": str(file), "hash": checked.hash}, as_json, f"{file}: valid, hash {checked.hash[:12]}")


@policy.command("schema")
def policy_schema() -> None:
    """JSON Schema of policy files, for editors."""
    from daemon.policy.schema import Policy

    sys.stdout.write(json.dumps(Policy.model_json_schema(), indent=2) + "\n")


@config.command("check")
def check_config(file: Path, as_json: Json = False) -> None:
    """Say everything that is wrong with a config file and the policy it names, or that nothing is."""
    from daemon.policy.load import load_policy

    checked = load_config(file)
    load_policy(checked.policy)
    say({"ok": True, "path": str(file)}, as_json, f"{file}: valid, and so is its policy {checked.policy}")


@config.command("schema")
def config_schema() -> None:
    """JSON Schema of config files, for editors."""
    sys.stdout.write(json.dumps(Config.model_json_schema(), indent=2) + "\n")
