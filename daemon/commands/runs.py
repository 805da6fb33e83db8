"""relearnd runs: training runs."""

import typer

from daemon.commands.options import DEFAULT_CONFIG, ConfigPath, Json, Limit, Reason, do, get, show
from daemon.commands.tables import facts_table, runs_table

app = typer.Typer(name="runs", help="Training runs.", invoke_without_command=True)


@app.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context, path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, as_json: Json = False
) -> None:
    """Training runs and how they ended."""
    if context.invoked_subcommand is None:
        show(get(path, "/v1/runs", limit=limit), as_json, runs_table)


@app.command("show")
def show_run(run_id: str, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """One run whole."""
    show(get(path, f"/v1/runs/{run_id}"), as_json, facts_table)


@app.command("cancel")
def cancel_run(run_id: str, path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """Stop the run that is going; the champion stays."""
    do(path, f"/v1/runs/{run_id}/cancel", as_json, f"run {run_id} is being cancelled", reason=reason)
