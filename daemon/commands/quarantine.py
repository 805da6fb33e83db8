"""relearnd quarantine: records that are valid and not trusted yet."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.options import (
    DEFAULT_CONFIG,
    PATIENCE_WITH_FILES,
    ConfigPath,
    Json,
    get,
    learner_of,
    say,
    show,
)
from daemon.commands.tables import quarantine_table

app = typer.Typer(name="quarantine", help="Records that are valid and not trusted yet.", no_args_is_help=True)

Position = Annotated[str | None, typer.Option("--position", "-p", help="One record: topic[partition]@offset.")]
Why = Annotated[str | None, typer.Option("--reason", "-r", help="All with this reason.")]
Source = Annotated[str | None, typer.Option("--source", "-s", help="All from this source.")]
Label = Annotated[str | None, typer.Option("--label", "-l", help="All with this label.")]


@app.command("list")
def list_quarantine(
    path: ConfigPath = DEFAULT_CONFIG,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, the oldest first.")] = 20,
    reason: Why = None,
    source: Source = None,
    label: Label = None,
    as_json: Json = False,
) -> None:
    """What was put aside and why, the oldest first, with its text."""
    chosen = {"reason": reason, "source": source, "label": label}
    asked = {name: value for name, value in chosen.items() if value is not None}
    show(get(path, "/v1/quarantine", limit=limit, **asked), as_json, quarantine_table)


@app.command()
def release(
    path: ConfigPath = DEFAULT_CONFIG,
    position: Position = None,
    reason: Why = None,
    source: Source = None,
    label: Label = None,
    as_json: Json = False,
) -> None:
    """Take records as examples, as they are; they must match all that is said."""
    chosen = {"position": position, "reason": reason, "source": source, "label": label}
    _decide(path, "release", chosen, as_json, "{released:,} records are examples now")


@app.command()
def drop(
    path: ConfigPath = DEFAULT_CONFIG,
    position: Position = None,
    reason: Why = None,
    source: Source = None,
    label: Label = None,
    as_json: Json = False,
) -> None:
    """Delete records; they must match all that is said. Their offsets stay accounted for."""
    chosen = {"position": position, "reason": reason, "source": source, "label": label}
    _decide(path, "drop", chosen, as_json, "{dropped:,} records were deleted")


def _decide(path: Path, what: str, chosen: dict[str, str | None], as_json: bool, done: str) -> None:
    """`done` is a format for the answer."""
    with learner_of(path, PATIENCE_WITH_FILES) as learner:
        answer = learner.post(f"/v1/quarantine/{what}", **chosen)
    say(answer, as_json, done.format(**answer))
