"""`demo.html`: one file that needs no network. Accuracy over the stream with its marks, latency, and what each round did."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plotly.subplots import make_subplots

from daemon.demo.report import SWAP_WINDOW_SECONDS
from daemon.demo.rounds import Round
from daemon.demo.scores import percentile
from daemon.demo.story import Event, Kind, Story
from daemon.demo.view import clock, count, milliseconds, percent

LATENCY_BIN_SECONDS = 1.0
MOST_POINTS = 3000
BANDS = ("#f3f6fb", "#fbf6ec")
INK, BLUE, GREY = "#1f2933", "#2563eb", "#9aa5b1"
MARKS: Mapping[Kind, tuple[str, str, str]] = {  # name, colour, symbol
    Kind.DRIFT: ("drift noticed", "#d97706", "diamond"),
    Kind.RUN: ("run started", "#7c3aed", "triangle-right"),
    Kind.REJECTION: ("not promoted", "#dc2626", "x"),
    Kind.PROMOTION: ("promoted", "#059669", "triangle-up"),
    Kind.SWAP: ("swapped in", "#0f172a", "circle"),
}


def page(story: Story, told: Mapping[str, Any], broken: Sequence[str]) -> str:
    """`told` is `demo.json`, `broken` the promises that were not kept."""
    chart = _figure(story).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    return _PAGE.format(
        cards="".join(_cards(told)),
        verdict=_verdict(broken),
        chart=chart,
        window=_prequential_note(story),
        rows="".join(_row(one) for one in story.rounds),
        broker=escape(told["broker"]),
        seconds=clock(story.seconds),
    )


def _figure(story: Story) -> Any:
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    _draw_sources(figure, story)
    _draw_accuracy(figure, story)
    _draw_marks(figure, story)
    _draw_latency(figure, story)
    figure.update_layout(
        template="plotly_white",
        height=640,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": -0.12},
        hovermode="closest",
    )
    figure.update_yaxes(title="accuracy, live", tickformat=".0%", range=[0, 1.02], row=1, col=1)
    figure.update_yaxes(title="latency, ms", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title="examples produced", range=[0, len(story.produced_at)], row=2, col=1)
    figure.update_xaxes(showgrid=False)
    return figure


def _draw_sources(figure: Any, story: Story) -> None:
    for place, leg in enumerate(story.legs):
        figure.add_vrect(
            x0=leg.first,
            x1=leg.last,
            fillcolor=BANDS[place % len(BANDS)],
            line_width=0,
            layer="below",
            row="all",
            col=1,
        )
        figure.add_annotation(
            x=(leg.first + leg.last) / 2, y=1.06, yref="y domain", text=f"<b>{escape(leg.source)}</b>", showarrow=False
        )


def _draw_accuracy(figure: Any, story: Story) -> None:
    points = story.points[:: max(1, len(story.points) // MOST_POINTS)]
    figure.add_scatter(
        x=[point.answer.example for point in points],
        y=[point.accuracy for point in points],
        customdata=[(point.answer.version, point.answer.source, clock(point.answer.at)) for point in points],
        hovertemplate="%{y:.1%} at example %{x}<br>version %{customdata[0]}, %{customdata[1]}, %{customdata[2]}<extra></extra>",
        mode="lines",
        line={"color": BLUE, "width": 2.5},
        name="prequential accuracy",
        row=1,
        col=1,
    )


def _draw_marks(figure: Any, story: Story) -> None:
    for kind, (name, colour, symbol) in MARKS.items():
        events = [event for event in story.events if event.kind == kind]
        if not events:
            continue
        for event in events:
            figure.add_vline(
                x=event.example, line={"color": colour, "width": 1, "dash": "dot"}, opacity=0.6, row=1, col=1
            )
        figure.add_scatter(
            x=[event.example for event in events],
            y=[_accuracy_at(story, event.example) for event in events],
            text=[_hover(event) for event in events],
            hovertemplate="%{text}<extra></extra>",
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"color": "white", "width": 1.5}},
            name=name,
            row=1,
            col=1,
        )


def _draw_latency(figure: Any, story: Story) -> None:
    bins: dict[int, list[float]] = {}
    for asked in story.asked:
        bins.setdefault(int(asked.at / LATENCY_BIN_SECONDS), []).append(asked.ms)
    places = [story.example_at((index + 0.5) * LATENCY_BIN_SECONDS) for index in bins]
    for name, share, colour in (("p50", 0.50, GREY), ("p99", 0.99, INK)):
        figure.add_scatter(
            x=places,
            y=[percentile(values, share) for values in bins.values()],
            hovertemplate=name + " %{y:.1f} ms in this second<extra></extra>",
            mode="lines",
            line={"color": colour, "width": 1.2},
            name=f"latency {name}",
            row=2,
            col=1,
        )
    for swap in story.swaps:
        figure.add_vrect(
            x0=story.example_at(swap - SWAP_WINDOW_SECONDS),
            x1=story.example_at(swap + SWAP_WINDOW_SECONDS),
            fillcolor=MARKS[Kind.DRIFT][1],
            opacity=0.25,
            line_width=0,
            row=2,
            col=1,
        )


def _accuracy_at(story: Story, example: int) -> float:
    before = [point.accuracy for point in story.points if point.answer.example <= example]
    return before[-1] if before else 0.0


def _hover(event: Event) -> str:
    """Long reasons in lines of a readable width."""
    words, lines = escape(event.text).split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 70:
            lines.append("")
        lines[-1] += f"{word} "
    return f"<b>{clock(event.at)}</b> " + "<br>".join(lines)


def _prequential_note(story: Story) -> str:
    return f"{len(story.points):,} answers scored" if story.points else "no answer scored"


def _cards(told: Mapping[str, Any]) -> list[str]:
    requests, examples = told["requests"], told["examples"]
    full = sum(one["accuracy_after"] is not None and one["verdict"] == "pass" for one in told["rounds"])
    cards = [
        (str(full), "rounds from drift to serving"),
        (f"{requests['failed']:,} of {requests['sent']:,}", "requests failed"),
        (milliseconds(requests["p99_ms"]), "p99 of all requests"),
        (milliseconds(requests["p99_in_swap_windows_ms"]), f"p99 within {SWAP_WINDOW_SECONDS:.0f} s of a swap"),
        (
            f"{count(examples['lost'])} / {count(examples['twice'])}",
            f"lost / twice, of {examples['produced']:,} records",
        ),
        (count(examples["dead_lettered"]), "malformed records in dead letters"),
    ]
    return [f"<div class=card><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in cards]


def _verdict(broken: Sequence[str]) -> str:
    if not broken:
        return "<p class=kept>Every promise of the scenario was kept.</p>"
    return "<ul class=broken>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in broken) + "</ul>"


def _row(one: Round) -> str:
    drift = ", ".join(
        f"{name} {score.score:.2f} of {score.threshold:.2f}"
        for name, score in one.drift.items()
        if score.score is not None and score.threshold is not None
    )
    seconds = "-" if one.seconds_drift_to_serving is None else f"{one.seconds_drift_to_serving:.1f} s"
    cells = [
        f"<b>{escape(one.source)}</b>",
        f"at example {one.drift_at_example}<br><small>{escape(drift)}</small>" if one.drift else "-",
        percent(one.accuracy_first_window),
        f"<b>{percent(one.accuracy_after)}</b>",
        f"{one.champion or '-'} → {one.challenger or '-'}",
        _judgement(one),
        seconds,
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _judgement(one: Round) -> str:
    if one.judged is None:
        return escape(one.missing or "-")
    tries = f" after {one.attempts} runs" if one.attempts > 1 else ""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in one.judged.reasons)
    missing = f"<p>{escape(one.missing)}</p>" if one.missing else ""
    return f"<details><summary>{escape(one.judged.outcome)}{tries}</summary><ul>{reasons}</ul></details>{missing}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>relearnd demo</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff;
         max-width: 1120px; margin: 32px auto; padding: 0 24px; }}
  h1 {{ font-size: 26px; margin: 0; }}  h2 {{ font-size: 18px; margin: 32px 0 8px; }}
  p {{ margin: 4px 0; }}  .quiet, small, .card span {{ color: #616e7c; }}
  .cards {{ display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }}
  .card {{ flex: 1 1 140px; border: 1px solid #e4e7eb; border-radius: 10px; padding: 12px 14px; }}
  .card b {{ display: block; font-size: 21px; }}  .card span {{ font-size: 13px; }}
  .kept {{ color: #047857; font-weight: 600; }}  .broken {{ color: #b91c1c; font-weight: 600; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ text-align: left; vertical-align: top; padding: 8px 10px; border-bottom: 1px solid #e4e7eb; }}
  th {{ font-size: 13px; color: #616e7c; font-weight: 600; }}
  details ul {{ margin: 6px 0; padding-left: 18px; font-size: 13px; max-width: 380px; }}  summary {{ cursor: pointer; }}
</style></head><body>
<h1>relearnd demo</h1>
<p class="quiet">A sentiment model kept fresh on a stream of real tweets whose topic changes.
{seconds} minutes, {broker} broker.</p>
{verdict}
<div class="cards">{cards}</div>
<h2>Accuracy over the stream</h2>
<p class="quiet">Prequential: the live server answers first, then the label is produced. So each point is about examples the
answering version cannot have been trained on. {window}. Below: latency as the client saw it, with the second on either side of
each swap shaded.</p>
{chart}
<h2>Rounds</h2>
<table><thead><tr><th>source</th><th>drift noticed</th><th>accuracy before</th><th>after</th><th>version</th><th>verdict</th>
<th>drift to serving</th></tr></thead><tbody>{rows}</tbody></table>
</body></html>
"""
