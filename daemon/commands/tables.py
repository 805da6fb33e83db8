"""How answers of the learner are shown to people."""

import json
from typing import Any

from rich.table import Table

from daemon.core.states import Alias


def status_table(status: dict[str, Any]) -> Table:
    stream, aliases = status["stream"], status["aliases"]
    table = table_of("", "")
    table.add_row("model", status["model"])
    table.add_row("stage", f"{status['stage']} since {time(status['since'])}")
    if status["paused"]:
        table.add_row("paused", f"since {time(status['paused']['since'])}: {status['paused']['reason'] or 'no reason'}")
    table.add_row("champion", str(aliases["champion"] or "none yet"))
    table.add_row("challenger, previous", f"{aliases['challenger'] or '-'}, {aliases['previous'] or '-'}")
    if aliases["canary"] or aliases["shadow"]:
        share = f" with {aliases['canary_share']:.1%} of the requests" if aliases["canary"] else ""
        table.add_row("canary, shadow", f"{aliases['canary'] or '-'}{share}, {aliases['shadow'] or '-'}")
    table.add_row(
        "examples",
        f"{stream['examples']:,} stored, {stream['dead_letters']:,} dead letters, {stream['quarantined']:,} in quarantine",
    )
    if stream["held_out_by_label"]:
        table.add_row("held out", _held_out(stream["held_out_by_label"], stream["by_label"]))
    if stream["label_delay"]:
        delay = stream["label_delay"]
        table.add_row(
            "label delay", f"p50 {delay['p50']:,.0f} s, p95 {delay['p95']:,.0f} s, of the newest {delay['examples']}"
        )
    table.add_row("consumer lag", f"{stream['lag']:,} records")
    if status["drift"]:
        table.add_row("drift", f"{status['drift']['detail']} ({status['drift_in_a_row']} in a row)")
    if status["performance"]:
        seen = status["performance"]
        table.add_row("accuracy", f"{seen['accuracy']:.3f} on {seen['examples']} new; was {seen['baseline']:.3f}")
    if status["run"]:
        progress = status["run"]["progress"]
        step = (
            f"{progress['stage']} {progress['done']}/{progress['total']} {progress['unit']}" if progress else "starting"
        )
        table.add_row("run", f"{status['run']['id']}: {step}")
    for server in status["servers"]:
        table.add_row(f"server {server['server']}", _server(server))
    for name, component in sorted(status["components"].items()):
        table.add_row(name, f"{component['state']} {component['detail']}")
    return table


def _server(report: dict[str, Any]) -> str:
    refused = "".join(f"; refuses {refusal['version']}: {refusal['reason']}" for refusal in report["refused"])
    return f"answers with {report['served'] or 'nothing'}{refused}"


def _held_out(held_out: dict[str, int], by_label: dict[str, int]) -> str:
    """The labels with the smallest and the largest share in the holdout: far apart, it does not stand for the stream."""
    shares = sorted((held_out.get(label, 0) / count, label) for label, count in by_label.items() if count)
    (least, rarest), (most, commonest) = shares[0], shares[-1]
    return f"{least:.1%} of {rarest!r} to {most:.1%} of {commonest!r}"


def models_table(answer: dict[str, Any]) -> Table:
    aliases = answer["aliases"]
    table = table_of("version", "alias", "accuracy", "macro F1", "parent", "examples", "created", "run")
    for version in reversed(answer["versions"]):
        names = [alias for alias in Alias if aliases[alias] == version["number"]]
        scores, lineage = version["evaluation"], version["lineage"]
        table.add_row(
            str(version["number"]),
            " ".join(names),
            number(scores["accuracy"]),
            number(scores["macro_f1"]),
            str(lineage["parent"] or "-"),
            f"{lineage['examples']:,}",
            time(version["created_at"]),
            lineage["run_id"],
        )
    return table


def decisions_table(answer: dict[str, Any]) -> Table:
    table = table_of("number", "at", "action", "by", "version", "reasons")
    for stored in answer["decisions"]:
        decision = stored["decision"]
        table.add_row(
            str(stored["number"]),
            time(decision["at"]),
            decision["action"],
            decision["by"],
            str(decision["version"] or ""),
            "\n".join(decision["reasons"]),
        )
    return table


def runs_table(answer: dict[str, Any]) -> Table:
    table = table_of("run", "state", "outcome", "version", "triggers", "started", "ended", "detail")
    for each in answer["runs"]:
        table.add_row(
            each["id"],
            each["state"],
            each["outcome"] or "",
            str(each["version"] or ""),
            ", ".join(each["triggers"]),
            time(each["created_at"]),
            time(each["finished_at"]),
            each["detail"],
        )
    return table


def dead_letters_table(answer: dict[str, Any]) -> Table:
    table = table_of("position", "reason", "rejected", "detail", title=f"{answer['total']:,} in all")
    for letter in answer["dead_letters"]:
        table.add_row(letter["position"], letter["reason"], time(letter["rejected_at"]), letter["detail"])
    return table


def quarantine_table(answer: dict[str, Any]) -> Table:
    table = table_of("position", "reason", "source", "label", "text", "detail", title=f"{answer['total']:,} in all")
    for one in answer["quarantined"]:
        table.add_row(one["position"], one["reason"], one["source"], one["label"], one["text"][:80], one["detail"])
    return table


def findings_table(answer: dict[str, Any]) -> Table:
    table = table_of("", "", "", "")
    for finding in answer["findings"]:
        table.add_row(finding["what"], "ok" if finding["ok"] else "NOT WELL", finding["detail"], finding["what_to_do"])
    return table


def facts_table(answer: dict[str, Any]) -> Table:
    table = table_of("", "")
    for key, value in answer.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value, indent=1))
    return table


def table_of(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def time(text: str | None) -> str:
    return "" if text is None else text[:19].replace("T", " ")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
