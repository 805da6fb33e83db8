"""What an operator types. Commands that ask or change something go through the learner's control API; none opens the store.

Exit codes are sysexits': 0 done, 1 the demo's promise was not kept, 64 usage, 69 nobody answers, 70 internal, 74 I/O,
75 temporary, 77 permission, 78 configuration.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daemon.config import Config, load_config
from daemon.control.client import ControlClient
from daemon.core.errors import RelearndError, UsageError
from daemon.runtime.child import die_with_parent
from daemon.runtime.telemetry import configure_logging

app = typer.Typer(
    name="relearnd",
    help="Keeps a served model fresh.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
models = typer.Typer(help="Versions and their aliases.", invoke_without_command=True)
runs = typer.Typer(help="Training runs.", invoke_without_command=True)
policy = typer.Typer(help="Policy files.", no_args_is_help=True)
config = typer.Typer(help="Config files.", no_args_is_help=True)
app.add_typer(models, name="models")
app.add_typer(runs, name="runs")
app.add_typer(policy, name="policy")
app.add_typer(config, name="config")

ConfigPath = Annotated[
    Path, typer.Option("--config", "-c", envvar="RELEARND_CONFIG", help="Config file.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; stored with the decision.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, the newest first.")]
DEFAULT_CONFIG = Path("configs/dev.yaml")
TYPERS_USAGE_ERROR = 2

out = Console()


# --- processes --------------------------------------------------------------------------------------------------------


@app.command()
def run(path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Supervise one learner and one server on this machine."""
    from daemon.supervisor import run_supervisor

    _start(path)
    raise typer.Exit(run_supervisor(path))


@app.command()
def learn(path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run the learner: Kafka, store, drift, runs, promotion."""
    from daemon.learner import run_learner

    raise typer.Exit(run_learner(_start(path)))


@app.command()
def serve(path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run a server: answers from the registry, with neither Kafka nor store nor learner."""
    from daemon.server import run_server

    raise typer.Exit(run_server(_start(path)))


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Two rounds, in about two minutes.")] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="Apache Kafka from its Maven artefacts.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where demo.html and demo.json go.")] = Path("build"),
    rate: Annotated[float | None, typer.Option(help="Examples a second; else the scenario's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print demo.json at the end.")] = False,
) -> None:
    """The whole loop on this machine: broker, real tweets, real model, at least three rounds of drift and promotion."""
    from daemon.demo.scenario import DemoOptions, run_demo

    options = DemoOptions(fast=fast, kafka=kafka, out=folder, rate=rate)
    code = run_demo(options, Console(stderr=True) if as_json else out)
    if as_json and code in (0, 1):
        sys.stdout.write((folder / "demo.json").read_text())
    raise typer.Exit(code)


# --- reading ----------------------------------------------------------------------------------------------------------


@app.command()
def status(path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """What the learner is doing, what it has seen, which version is champion."""
    _show(_get(path, "/v1/status"), as_json, _status_table)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """All versions with their aliases and scores."""
    if context.invoked_subcommand is None:
        _show(_get(path, "/v1/models"), as_json, _models_table)


@models.command("show")
def show_model(number: int, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """One version whole: lineage, scores, labels, digests."""
    _show(_get(path, f"/v1/models/{number}"), as_json, _facts_table)


@app.command()
def decisions(path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, as_json: Json = False) -> None:
    """What was decided and why, also when it was decided to wait."""
    _show(_get(path, "/v1/decisions", limit=limit), as_json, _decisions_table)


@runs.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context, path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, as_json: Json = False
) -> None:
    """Training runs and how they ended."""
    if context.invoked_subcommand is None:
        _show(_get(path, "/v1/runs", limit=limit), as_json, _runs_table)


@runs.command("show")
def show_run(run_id: str, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """One run whole."""
    _show(_get(path, f"/v1/runs/{run_id}"), as_json, _facts_table)


@runs.command("cancel")
def cancel_run(run_id: str, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Stop the run that is going; the champion stays."""
    _do(path, f"/v1/runs/{run_id}/cancel", as_json, f"run {run_id} is being cancelled")


@app.command("dead-letters")
def dead_letters(path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, as_json: Json = False) -> None:
    """Records that could not become examples, with position and reason."""
    _show(_get(path, "/v1/dead-letters", limit=limit), as_json, _dead_letters_table)


# --- acting -----------------------------------------------------------------------------------------------------------


@app.command()
def retrain(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """Start a run now, cool-down or not; the gates still judge it."""
    _do(path, "/v1/retrain", as_json, "a run was asked for; see: relearnd status", reason=reason)


@app.command()
def promote(number: int, path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """Make a version the champion, whatever its gates said."""
    _do(path, "/v1/promote", as_json, f"version {number} is the champion", version=number, reason=reason)


@app.command()
def rollback(
    number: Annotated[int | None, typer.Argument(help="Version to go back to; else the previous champion.")] = None,
    path: ConfigPath = DEFAULT_CONFIG,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Make the previous champion, or version NUMBER, the champion again."""
    _do(path, "/v1/rollback", as_json, "rolled back; see: relearnd models", version=number, reason=reason)


@app.command()
def pause(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """No new runs, and the one going is cancelled; ingest and serving go on. Survives a restart."""
    _do(path, "/v1/pause", as_json, "learning is paused; ingest and serving go on", reason=reason)


@app.command()
def resume(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """End a pause."""
    _do(path, "/v1/resume", as_json, "learning goes on", reason=reason)


# --- files ------------------------------------------------------------------------------------------------------------


@policy.command("check")
def check_policy(file: Path, as_json: Json = False) -> None:
    """Say everything that is wrong with a policy file, or that nothing is."""
    from daemon.policy.load import load_policy

    checked = load_policy(file)
    _say({"ok": True, "path": str(file), "hash": checked.hash}, as_json, f"{file}: valid, hash {checked.hash[:12]}")


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
    _say({"ok": True, "path": str(file)}, as_json, f"{file}: valid, and so is its policy {checked.policy}")


@config.command("schema")
def config_schema() -> None:
    """JSON Schema of config files, for editors."""
    sys.stdout.write(json.dumps(Config.model_json_schema(), indent=2) + "\n")


# --- how it is shown --------------------------------------------------------------------------------------------------


def _status_table(status: dict[str, Any]) -> Table:
    stream, aliases = status["stream"], status["aliases"]
    table = _table("", "")
    table.add_row("model", status["model"])
    table.add_row("stage", f"{status['stage']} since {_time(status['since'])}")
    if status["paused"]:
        table.add_row(
            "paused", f"since {_time(status['paused']['since'])}: {status['paused']['reason'] or 'no reason'}"
        )
    table.add_row("champion", str(aliases["champion"] or "none yet"))
    table.add_row("challenger, previous", f"{aliases['challenger'] or '-'}, {aliases['previous'] or '-'}")
    table.add_row("examples", f"{stream['examples']:,} stored, {stream['dead_letters']:,} dead letters")
    table.add_row("consumer lag", f"{stream['lag']:,} records")
    if status["drift"]:
        table.add_row("drift", f"{status['drift']['detail']} ({status['drift_in_a_row']} in a row)")
    if status["performance"]:
        seen = status["performance"]
        table.add_row("accuracy", f"{seen['accuracy']:.3f} on {seen['examples']} new; was {seen['baseline']:.3f}")
    if status["run"]:
        progress = status["run"]["progress"]
        step = (
            f"{progress['stage']} {progress['done']}/{progress['total']} {progress['unit']}" if progress else "starting"
        )
        table.add_row("run", f"{status['run']['id']}: {step}")
    for name, component in sorted(status["components"].items()):
        table.add_row(name, f"{component['state']} {component['detail']}")
    return table


def _models_table(answer: dict[str, Any]) -> Table:
    aliases = answer["aliases"]
    table = _table("version", "alias", "accuracy", "macro F1", "parent", "examples", "created", "run")
    for version in reversed(answer["versions"]):
        names = [name for name in ("champion", "challenger", "previous") if aliases[name] == version["number"]]
        scores, lineage = version["evaluation"], version["lineage"]
        table.add_row(
            str(version["number"]),
            " ".join(names),
            _number(scores["accuracy"]),
            _number(scores["macro_f1"]),
            str(lineage["parent"] or "-"),
            f"{lineage['examples']:,}",
            _time(version["created_at"]),
            lineage["run_id"],
        )
    return table


def _decisions_table(answer: dict[str, Any]) -> Table:
    table = _table("number", "at", "action", "by", "version", "reasons")
    for stored in answer["decisions"]:
        decision = stored["decision"]
        table.add_row(
            str(stored["number"]),
            _time(decision["at"]),
            decision["action"],
            decision["by"],
            str(decision["version"] or ""),
            "\n".join(decision["reasons"]),
        )
    return table


def _runs_table(answer: dict[str, Any]) -> Table:
    table = _table("run", "state", "outcome", "version", "triggers", "started", "ended", "detail")
    for each in answer["runs"]:
        table.add_row(
            each["id"],
            each["state"],
            each["outcome"] or "",
            str(each["version"] or ""),
            ", ".join(each["triggers"]),
            _time(each["created_at"]),
            _time(each["finished_at"]),
            each["detail"],
        )
    return table


def _dead_letters_table(answer: dict[str, Any]) -> Table:
    table = _table("position", "reason", "bytes", "rejected", "detail", title=f"{answer['total']:,} in all")
    for letter in answer["dead_letters"]:
        size = "" if letter["bytes"] is None else str(letter["bytes"])
        table.add_row(letter["position"], letter["reason"], size, _time(letter["rejected_at"]), letter["detail"])
    return table


def _facts_table(answer: dict[str, Any]) -> Table:
    table = _table("", "")
    for key, value in answer.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value, indent=1))
    return table


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _time(text: str | None) -> str:
    return "" if text is None else text[:19].replace("T", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# --- plumbing ---------------------------------------------------------------------------------------------------------


def _start(path: Path) -> Config:
    """Load the config of a process, set its logs up, and stop cleanly should the supervisor be killed."""
    die_with_parent(signal.SIGTERM)
    loaded = load_config(path)
    configure_logging(level=loaded.log.level, format=loaded.log.format)
    return loaded


@contextmanager
def _client(path: Path) -> Iterator[ControlClient]:
    client = ControlClient(load_config(path).control.socket)
    try:
        yield client
    finally:
        client.close()


def _get(path: Path, what: str, **query: Any) -> Any:
    with _client(path) as client:
        return client.get(what, **query)


def _do(path: Path, what: str, as_json: bool, done: str, **body: Any) -> None:
    with _client(path) as client:
        _say(client.post(what, **body), as_json, done)


def _show(answer: dict[str, Any], as_json: bool, table: Callable[[dict[str, Any]], Table]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        out.print(table(answer))


def _say(answer: dict[str, Any], as_json: bool, sentence: str) -> None:
    sys.stdout.write((json.dumps(answer) if as_json else sentence) + "\n")


def main() -> None:
    """The entry point: errors become one line on stderr and a stable exit code."""
    try:
        app()
    except RelearndError as error:
        sys.stderr.write(f"relearnd: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as done:
        sys.exit(UsageError.exit_code if done.code == TYPERS_USAGE_ERROR else done.code)
