"""Commands that are processes."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from daemon.commands.options import DEFAULT_CONFIG, ConfigPath, out, start

app = typer.Typer()


@app.command()
def run(path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Supervise one learner and one server on this machine."""
    from daemon.supervisor import run_supervisor

    start(path)
    raise typer.Exit(run_supervisor(path))


@app.command()
def learn(path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run the learner: Kafka, store, drift, runs, promotion."""
    from daemon.learner import run_learner

    raise typer.Exit(run_learner(start(path)))


@app.command()
def serve(path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run a server: answers from the registry, with neither Kafka nor store nor learner."""
    from daemon.server import run_server

    raise typer.Exit(run_server(start(path)))


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Two rounds, in about two minutes.")] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="Apache Kafka from its Maven artefacts.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where demo.html and demo.json go.")] = Path("build"),
    rate: Annotated[float | None, typer.Option(min=1, help="Examples a second; else the scenario's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print demo.json at the end.")] = False,
) -> None:
    """The whole loop on this machine: broker, real tweets, real model, at least three rounds of drift and promotion."""
    from daemon.demo.scenario import DemoOptions, run_demo

    options = DemoOptions(fast=fast, kafka=kafka, out=folder, rate=rate)
    code = run_demo(options, Console(stderr=True) if as_json else out)
    if as_json and code in (0, 1):
        sys.stdout.write((folder / "demo.json").read_text())
    raise typer.Exit(code)
