"""The command line. Commands that ask or change something go through the learner's control API; none opens a live store.

Exit codes are sysexits': 0 done, 1 the demo's promise was not kept, 64 usage, 69 nobody answers, 70 internal, 74 I/O,
75 temporary, 77 permission, 78 configuration.
"""

import json
import sys
from typing import Annotated, NoReturn

import typer

from daemon.commands import data, dead_letters, files, ingest, learning, models, processes, quarantine, runs, trials
from daemon.core.errors import RelearndError, UsageError, of_system
from daemon.runtime.code import code_version

TYPERS_USAGE_ERROR = 2

app = typer.Typer(
    name="relearnd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"relearnd {code_version()}\n")
        raise typer.Exit


@app.callback()
def relearnd(
    _: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="The release and a digest of the code."),
    ] = False,
) -> None:
    """Keeps a served model fresh."""


for noun in (processes, learning, trials, models, runs, dead_letters, quarantine, ingest, data, files):
    app.add_typer(noun.app)


def main() -> None:
    """The entry point: errors become one line on stderr, an object with --json, and a stable exit code."""
    try:
        app()
    except RelearndError as error:
        _end(error)
    except OSError as error:
        _end(of_system(error))
    except SystemExit as done:
        sys.exit(UsageError.exit_code if done.code == TYPERS_USAGE_ERROR else done.code)


def _end(error: RelearndError) -> NoReturn:
    told = json.dumps({"error": str(error), "code": error.exit_code})
    sys.stderr.write(f"{told}\n" if "--json" in sys.argv else f"relearnd: {error}\n")
    sys.exit(error.exit_code)
