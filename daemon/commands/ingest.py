"""relearnd ingest: reading the stream."""

import typer

from daemon.commands.options import DEFAULT_CONFIG, ConfigPath, Json, Reason, do

app = typer.Typer(name="ingest", help="Reading the stream.", no_args_is_help=True)


@app.command()
def resume(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """Read on after too many records were refused or kept aside."""
    do(path, "/v1/ingest/resume", as_json, "ingest goes on", reason=reason)
