"""Commands about the store as a whole: copies, restoring, checking, forgetting."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.commands.options import DEFAULT_CONFIG, PATIENCE_WITH_FILES, ConfigPath, Json, learner_of, say, show
from daemon.commands.tables import facts_table, findings_table
from daemon.config import load_config
from daemon.core.errors import StoreError, UnavailableError

app = typer.Typer()
snapshots = typer.Typer(help="Copies for analysts.", no_args_is_help=True)
app.add_typer(snapshots, name="snapshot")


@snapshots.command("export")
def export(
    folder: Path,
    form: Annotated[str, typer.Option("--format", "-f", help="parquet or duckdb.")] = "parquet",
    path: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write the store's tables to FOLDER, read-only, while learning goes on; each file there is replaced whole."""
    with learner_of(path, PATIENCE_WITH_FILES) as learner:
        answer = learner.post("/v1/snapshots", folder=str(folder.absolute()), form=form)
    say(answer, as_json, f"{len(answer['files'])} files in {folder}")


@app.command()
def backup(folder: Path, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Copy the store into a new folder inside FOLDER while learning goes on, and prove the copy equal."""
    with learner_of(path, PATIENCE_WITH_FILES) as learner:
        made = learner.post("/v1/backups", folder=str(folder.absolute()))
    say(made, as_json, f"{made['folder']}: {made['size']:,} bytes, {made['coverage']['offsets']:,} offsets, verified")


@app.command()
def restore(folder: Path, path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Put the backup in FOLDER in the store's place; the learner must be stopped. The old file is kept beside it."""
    from daemon.store.backup import restore as put_back
    from daemon.store.database_file import duckdb_options

    store = load_config(path).store
    options = duckdb_options(store.memory_limit, store.threads)
    restored = put_back(folder.absolute(), store.path.absolute(), options, datetime.now(UTC))
    answer: dict[str, Any] = {
        "backup": restored.backup.folder,
        "examples": restored.backup.coverage.examples,
        "kept": str(restored.kept) if restored.kept else None,
        "forgotten_again": restored.forgotten_again,
        "old_store_unread": restored.old_store_unread,
    }
    if restored.forgotten_again:
        answer["to_do"] = "Dead letters were not looked through: give `relearnd forget` again for each of these people."
    show(answer, as_json, facts_table)


@app.command()
def doctor(path: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Look at the store, of a learner or of none, and say what is wrong and what to do. Changes nothing."""
    findings = _findings(path)
    show({"findings": findings}, as_json, findings_table)
    broken = [finding["what"] for finding in findings if not finding["ok"]]
    if broken:
        raise StoreError(f"not well: {', '.join(broken)}")


def _findings(path: Path) -> list[dict[str, Any]]:
    try:
        with learner_of(path, PATIENCE_WITH_FILES) as learner:
            return list(learner.get("/v1/doctor")["findings"])
    except UnavailableError:
        from daemon.store.database_file import duckdb_options
        from daemon.store.doctor import examine_file

        store = load_config(path).store
        options = duckdb_options(store.memory_limit, store.threads)
        return [asdict(finding) for finding in examine_file(store.path.absolute(), options)]


@app.command()
def forget(
    subject: Annotated[str, typer.Option("--subject", help="Whom, as kafka.fields.subject has them.")],
    path: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Erase a person: from the store's file and the runs' data, for good; and name the versions trained on them."""
    with learner_of(path, PATIENCE_WITH_FILES) as learner:
        answer = learner.post("/v1/forget", subject=subject)
    show(answer, as_json, facts_table)
