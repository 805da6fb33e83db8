"""relearnd dead-letters: records that could not become examples."""

from typing import Annotated

import typer

from daemon.commands.options import (
    DEFAULT_CONFIG,
    PATIENCE_WITH_FILES,
    ConfigPath,
    Json,
    Limit,
    get,
    learner_of,
    say,
    show,
)
from daemon.commands.tables import dead_letters_table, facts_table

app = typer.Typer(name="dead-letters", help="Records that could not become examples.", invoke_without_command=True)

Position = Annotated[str | None, typer.Option("--position", "-p", help="One record: topic[partition]@offset.")]
Why = Annotated[str | None, typer.Option("--reason", "-r", help="All with this reason.")]


@app.callback(invoke_without_command=True)
def dead_letters(
    context: typer.Context, path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, as_json: Json = False
) -> None:
    """Records that could not become examples, with position and reason."""
    if context.invoked_subcommand is None:
        show(get(path, "/v1/dead-letters", limit=limit), as_json, dead_letters_table)


@app.command("list")
def list_dead_letters(
    path: ConfigPath = DEFAULT_CONFIG, limit: Limit = 20, reason: Why = None, as_json: Json = False
) -> None:
    """The same list."""
    asked = {} if reason is None else {"reason": reason}
    show(get(path, "/v1/dead-letters", limit=limit, **asked), as_json, dead_letters_table)


@app.command("show")
def show_dead_letter(position: str, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """One record whole, with its key and value."""
    show(get(path, "/v1/dead-letters/one", position=position), as_json, facts_table)


@app.command()
def redrive(
    path: ConfigPath = DEFAULT_CONFIG, position: Position = None, reason: Why = None, as_json: Json = False
) -> None:
    """Try records again, with the config and the policy as they are now; all of them unless some are named."""
    with learner_of(path, PATIENCE_WITH_FILES) as learner:
        answer = learner.post("/v1/dead-letters/redrive", position=position, reason=reason)
    say(answer, as_json, ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in answer.items()))


@app.command()
def drop(
    path: ConfigPath = DEFAULT_CONFIG, position: Position = None, reason: Why = None, as_json: Json = False
) -> None:
    """Delete records for good. Their offsets stay accounted for."""
    with learner_of(path, PATIENCE_WITH_FILES) as learner:
        answer = learner.post("/v1/dead-letters/drop", position=position, reason=reason)
    say(answer, as_json, f"{answer['dropped']:,} records were deleted")
