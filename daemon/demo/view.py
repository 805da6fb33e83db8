"""The demo while it goes: one screen of 80 by 24, or plain lines. Pure: a picture in, something to print out."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.demo.readings import Drift, Going, Status
from daemon.demo.rounds import Round
from daemon.demo.story import Event, Kind, Picture, Point

WIDTH = 78
BLOCKS = "▁▂▃▄▅▆▇█"
STEPS = ("load", "train", "export", "parity", "evaluate")
NEWEST_EVENTS = 4
MARKS = {
    Kind.SOURCE: "▸",
    Kind.DRIFT: "≠",
    Kind.RUN: "⚙",
    Kind.PROMOTION: "↑",
    Kind.REJECTION: "×",
    Kind.SWAP: "⇄",
    Kind.ROUND: "✓",
}


def screen(picture: Picture, *, sources: Sequence[str], broker: str) -> RenderableType:
    """Everything at once, at most 24 lines."""
    return Group(
        _title(picture, broker),
        _sources(picture.source, sources),
        _stream(picture),
        Text(),
        _accuracy(picture),
        *strip(picture.points, WIDTH),
        Text(),
        _drift(picture.status),
        _run(picture.status),
        _requests(picture),
        Text(),
        rounds_table(picture.rounds),
        *(_event(event) for event in picture.events[-NEWEST_EVENTS:]),
    )


def plain(picture: Picture) -> str:
    """One line for a log."""
    status = picture.status
    return (
        f"{clock(picture.seconds)} {status.stage if status else 'starting'}; {picture.source}: "
        f"{picture.produced} produced, {status.stored if status else 0} stored, lag {status.lag if status else 0}; "
        f"accuracy {percent(_accuracy_now(picture))}, version {picture.version or '-'}; "
        f"{picture.sent} requests, {picture.failed} failed, p99 {milliseconds(picture.p99_ms)}"
        + (f"; {_run_words(status.run)}" if status and status.run else "")
    )


def plain_event(event: Event) -> str:
    return f"{clock(event.at)} {MARKS[event.kind]} {event.text}"


def rounds_table(rounds: Sequence[Round]) -> Table:
    """One row a round; what has not happened yet is a dash."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("round", no_wrap=True)
    for heading in ("drift at", "before", "after", "versions", "verdict", "drift to serving"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in rounds:
        table.add_row(
            one.source,
            _or_dash(one.drift_at_example),
            percent(one.accuracy_first_window),
            Text(percent(one.accuracy_after), style="" if one.missing else "bold green"),
            f"{_or_dash(one.champion)} → {_or_dash(one.challenger)}",
            _verdict(one),
            "-" if one.seconds_drift_to_serving is None else f"{one.seconds_drift_to_serving:.0f} s",
        )
    return table


def summary(told: Mapping[str, Any]) -> list[str]:
    """What `demo.json` says beside the rounds, in three lines."""
    requests, examples = told["requests"], told["examples"]
    return [
        f"requests  {requests['sent']:,} sent, {requests['failed']:,} failed; p50 {milliseconds(requests['p50_ms'])}, "
        f"p99 {milliseconds(requests['p99_ms'])}, p99 around swaps {milliseconds(requests['p99_in_swap_windows_ms'])}",
        f"records   {examples['produced']:,} produced, "
        + ", ".join(
            f"{count(examples[key])} {what}"
            for key, what in (
                ("stored", "stored"),
                ("dead_lettered", "dead letters"),
                ("lost", "lost"),
                ("twice", "twice"),
            )
        ),
        f"answers   named versions {', '.join(map(str, told['versions_served'])) or 'none'}; "
        f"{clock(told['seconds'])} minutes",
    ]


def strip(points: Sequence[Point], width: int) -> list[Text]:
    """Accuracy over the stream in `width` columns; below it the version that answered and the source."""
    columns = [points[i * len(points) // width] for i in range(width)] if len(points) >= width else list(points)
    bars, versions, sources = Text(style="cyan"), Text(style="dim"), Text(style="dim")
    before: Point | None = None
    for point in columns:
        bars.append(BLOCKS[min(int(point.accuracy * len(BLOCKS)), len(BLOCKS) - 1)])
        same_version = before is not None and before.answer.version == point.answer.version
        versions.append("·" if same_version else str(point.answer.version % 10))
        before = point
    for source, count in _runs_of([point.answer.source for point in columns]):
        sources.append(source[: count - 1].ljust(count, "·"))
    return [bars, versions, sources]


def clock(seconds: float) -> str:
    """1:05"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _title(picture: Picture, broker: str) -> Text:
    stage = picture.status.stage if picture.status else "starting"
    text = Text().append("relearnd demo", style="bold")
    text.append(f"   {broker} broker   learner: ", style="dim")
    text.append(stage, style="bold yellow" if stage in ("training", "judging", "promoting") else "bold green")
    text.append(f"   {clock(picture.seconds)}", style="bold")
    return text


def _sources(present: str, sources: Sequence[str]) -> Text:
    text = _line("source")
    for place, source in enumerate(sources):
        text.append(" → " if place else "", style="dim")
        text.append(source, style="bold reverse" if source == present else "dim")
    return text


def _stream(picture: Picture) -> Text:
    status = picture.status
    stored, lag, dead = (status.stored, status.lag, status.dead_letters) if status else (0, 0, 0)
    return _line("stream", f"produced {picture.produced:,}   stored {stored:,}   lag {lag:,}   dead letters {dead:,}")


def _accuracy(picture: Picture) -> Text:
    text = _line("accuracy")
    text.append(percent(_accuracy_now(picture)), style="bold cyan")
    champion = picture.status.champion if picture.status else None
    text.append(f"   live, before training   answering: version {picture.version or '-'}")
    text.append(f"   champion: {champion or '-'}")
    return text


def _drift(status: Status | None) -> Text:
    text = _line("drift")
    drift: Drift | None = status.drift if status else None
    if drift is None or status is None:
        return text.append("not measured yet")
    for name, score in drift.scores.items():
        told = f"{name} {_two(score.score)} of {_two(score.threshold)}"
        text.append(told, style="bold red" if score.drifted else "green")
        text.append("   ")
    return text.append(f"drifted {status.drift_in_a_row} in a row" if drift.drifted else "no drift")


def _run(status: Status | None) -> Text:
    if status is None or status.run is None:
        return _line("run", "-")
    run = status.run
    text = _line("run")
    here = STEPS.index(run.step) if run.step in STEPS else -1
    for place, step in enumerate(STEPS):
        text.append(f"{step} ", style="green" if place < here else "bold yellow" if place == here else "dim")
        if place == here and run.total:
            text.append(f"{_bar(run.done / run.total, 12)} {run.done}/{run.total} ", style="yellow")
    return text


def _requests(picture: Picture) -> Text:
    text = _line("requests", f"sent {picture.sent:,}   ")
    text.append(f"failed {picture.failed:,}", style="bold red" if picture.failed else "green")
    return text.append(f"   p50 {milliseconds(picture.p50_ms)}   p99 {milliseconds(picture.p99_ms)}")


def _event(event: Event) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis").append(f"{clock(event.at):>5} ", style="dim")
    return text.append(f"{MARKS[event.kind]} {event.text}")


def _line(name: str, told: str = "") -> Text:
    return Text().append(f"{name:<9}", style="dim").append(told)


def _verdict(one: Round) -> Text:
    if one.judged is None:
        return Text("-")
    tries = f", run {one.attempts}" if one.attempts > 1 else ""
    return Text(one.judged.outcome + tries, style="green" if one.judged.outcome == "pass" else "red")


def _run_words(run: Going) -> str:
    return f"run {run.id} {run.step} {run.done}/{run.total} {run.unit}" if run.step else f"run {run.id}"


def _accuracy_now(picture: Picture) -> float | None:
    return picture.points[-1].accuracy if picture.points else None


def _bar(share: float, width: int) -> str:
    full = round(max(0.0, min(share, 1.0)) * width)
    return "█" * full + "░" * (width - full)


def _runs_of(names: Sequence[str]) -> list[tuple[str, int]]:
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return runs


def _two(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
