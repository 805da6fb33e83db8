"""The command line. Commands that ask or change something go through the learner's control API; none opens a live store.

Exit codes are sysexits': 0 done, 1 the demo's promise was not kept, 64 usage, 69 nobody answers, 70 internal, 74 I/O,
75 temporary, 77 permission, 78 configuration.
"""

import sys

import typer

from daemon.commands import data, dead_letters, files, ingest, learning, models, processes, quarantine, runs, trials
from daemon.core.errors import RelearndError, UsageError

TYPERS_USAGE_ERROR = 2

app = typer.Typer(
    name="relearnd",
    help="Keeps a served model fresh.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for noun in (processes, learning, trials, models, runs, dead_letters, quarantine, ingest, data, files):
    app.add_typer(noun.app)


def main() -> None:
    """The entry point: errors become one line on stderr and a stable exit code."""
    try:
        app()
    except RelearndError as error:
        sys.stderr.write(f"relearnd: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as done:
        sys.exit(UsageError.exit_code if done.code == TYPERS_USAGE_ERROR else done.code)
