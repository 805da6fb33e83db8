"""relearnd models: versions and their aliases."""

from typing import Annotated

import typer

from daemon.commands.options import DEFAULT_CONFIG, ConfigPath, Json, get, show
from daemon.commands.tables import facts_table, models_table

app = typer.Typer(name="models", help="Versions and their aliases.", invoke_without_command=True)


@app.callback(invoke_without_command=True)
def list_models(context: typer.Context, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """All versions with their aliases and scores."""
    if context.invoked_subcommand is None:
        show(get(path, "/v1/models"), as_json, models_table)


@app.command("show")
def show_model(
    number: int,
    path: ConfigPath = DEFAULT_CONFIG,
    data: Annotated[bool, typer.Option("--data", help="Which examples it was trained and judged on, by seq.")] = False,
    as_json: Json = False,
) -> None:
    """One version whole: lineage, scores, labels, digests."""
    version = get(path, f"/v1/models/{number}")
    if data:
        version = get(path, f"/v1/runs/{version['lineage']['run_id']}/data")
    show(version, as_json, facts_table)
