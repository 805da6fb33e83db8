"""What the learner is doing, and what an operator may tell it to do."""

from typing import Annotated

import typer

from daemon.commands.options import DEFAULT_CONFIG, ConfigPath, Json, Limit, Reason, do, get, show
from daemon.commands.tables import decisions_table, status_table

app = typer.Typer()


@app.command()
def status(path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """What the learner is doing, what it has seen, which version is champion."""
    show(get(path, "/v1/status"), as_json, status_table)


@app.command()
def decisions(path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, as_json: Json = False) -> None:
    """What was decided and why, also when it was decided to wait."""
    show(get(path, "/v1/decisions", limit=limit), as_json, decisions_table)


@app.command()
def retrain(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """Start a run now, cool-down or not; the gates still judge it."""
    do(path, "/v1/retrain", as_json, "a run was asked for; see: relearnd status", reason=reason)


@app.command()
def promote(number: int, path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """Make a version the champion, whatever its gates said."""
    do(path, "/v1/promote", as_json, f"version {number} is the champion", version=number, reason=reason)


@app.command()
def rollback(
    number: Annotated[int | None, typer.Argument(help="Version to go back to; else the previous champion.")] = None,
    path: ConfigPath = DEFAULT_CONFIG,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Make the previous champion, or version NUMBER, the champion again."""
    do(path, "/v1/rollback", as_json, "rolled back; see: relearnd models", version=number, reason=reason)


@app.command("accept-log")
def accept_log(
    topic: str,
    partition: Annotated[int | None, typer.Option(help="This one only; else all that are not read.")] = None,
    begin_at: Annotated[
        int | None, typer.Option("--from", help="Give up what lies before this offset; it becomes a gap.")
    ] = None,
    path: ConfigPath = DEFAULT_CONFIG,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Read partitions again that are not read because their log is not what it was; see the components of status."""
    do(
        path, "/v1/accept-log", as_json, f"{topic} is accepted as it is now; see: relearnd status",
        topic=topic, partition=partition, begin_at=begin_at, reason=reason,
    )  # fmt: skip


@app.command()
def pause(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """No new runs, and the one going is cancelled; ingest and serving go on. Survives a restart."""
    do(path, "/v1/pause", as_json, "learning is paused; ingest and serving go on", reason=reason)


@app.command()
def resume(path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False) -> None:
    """End a pause."""
    do(path, "/v1/resume", as_json, "learning goes on", reason=reason)
