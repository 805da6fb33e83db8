"""What the documents say is what the code does: commands, flags, codes, reasons, metrics, settings, files, examples."""

import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

import pytest
import typer
from pydantic import BaseModel

from daemon.cli import app
from daemon.config import Config, FieldNames, KafkaConfig, Splits, load_config
from daemon.core import errors
from daemon.core.states import GapReason, QuarantineReason, RejectReason, SkipReason
from daemon.core.stream import Example, Position, Record
from daemon.ingest.decode import Decoder
from daemon.ingest.halves import half_readers
from daemon.ingest.join import join
from daemon.ingest.splits import splitter
from daemon.policy.schema import Policy, RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics, ServerMetrics
from daemon.serve.open_inference import parse_inference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
TYPED = [line.split("#")[0].strip() for _, block in BLOCKS for line in block.splitlines()] + SPANS


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the first table under a heading."""
    yield from tables(heading)[0]


def tables(heading: str) -> list[list[list[str]]]:
    """The cells of each table under a heading, row by row."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines.splitlines()[2:]]
        for lines in found
    ]


# --- commands -----------------------------------------------------------------------------------------------------


def commands(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command that does something, by its words."""
    inner = getattr(node, "commands", {})
    found = {} if inner and not node.invoke_without_command else {path: node}
    for name, command in inner.items():
        found |= commands(command, (*path, name))
    return found


WHOLE = typer.main.get_command(app)
COMMANDS = commands(WHOLE)
FLAGS = {flag for command in (WHOLE, *COMMANDS.values()) for parameter in command.params for flag in parameter.opts}


def shown() -> dict[tuple[str, ...], set[str]]:
    """Each command that README shows, with the flags it shows it with."""
    found: dict[tuple[str, ...], set[str]] = {}
    for text in TYPED:
        words = re.split(r"\s+", text)
        if words[0] != "relearnd" or len(words) == 1:
            continue
        path = tuple(words[1:3]) if tuple(words[1:3]) in COMMANDS else (words[1],)
        found.setdefault(path, set()).update(word for word in words if word.startswith("-"))
    return found


def test_readme_shows_every_command_and_no_other() -> None:
    assert set(shown()) == set(COMMANDS)


def test_every_flag_in_readme_belongs_to_the_command_it_is_shown_with() -> None:
    strange = {
        f"relearnd {' '.join(path)} {flag}"
        for path, flags in shown().items()
        for flag in flags - {flag for parameter in COMMANDS[path].params for flag in parameter.opts}
    }
    alone = {span.split()[0] for span in SPANS if span.startswith("--")} - FLAGS

    assert strange | alone == set()


def test_every_make_target_in_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {text.split()[1] for text in TYPED if text.startswith("make ")}

    assert named >= {"demo", "test", "check"}
    assert named - targets == set()


# --- closed sets --------------------------------------------------------------------------------------------------


def test_readme_names_every_exit_code_and_no_other() -> None:
    ours = {kind.exit_code for kind in vars(errors).values() if is_error(kind)}
    demo_promise, interrupted = 1, 130

    assert {int(code) for code, *_ in rows("Exit codes and signals")} == ours | {0, demo_promise, interrupted}


def is_error(kind: object) -> TypeGuard[type[errors.RelearndError]]:
    return isinstance(kind, type) and issubclass(kind, errors.RelearndError)


def test_readme_says_what_to_do_about_every_reason() -> None:
    told = {reason.strip("`"): todo for reason, _record, todo in rows("When a record is refused")}

    assert set(told) == set(RejectReason)
    assert all(told.values())
    kept_aside, left_out = tables("When a record is kept aside")[:2]
    assert {reason.strip("`") for reason, *_ in kept_aside} == set(QuarantineReason)
    assert {reason.strip("`") for reason, *_ in left_out} == set(SkipReason)
    assert all(all(row) for row in (*kept_aside, *left_out))
    assert {f"`{reason}`" for reason in GapReason} <= {f"`{span}`" for span in SPANS}


@pytest.mark.parametrize("metrics", [LearnerMetrics(), ServerMetrics()], ids=["learner", "server"])
def test_readme_lists_every_metric_with_its_labels(metrics: LearnerMetrics | ServerMetrics) -> None:
    ours = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    labels = {
        metric._name + ("_total" if metric._type == "counter" else ""): set(metric._labelnames)
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }

    assert set(labels) == ours
    assert {name: MENTIONED.get(name) for name in ours} == labels


MENTIONED = {
    name: set(labels.strip("{}").split(",")) if labels else set()
    for name, labels in re.findall(r"`(relearnd_[a-z_]+)(\{[a-z,]+\})?`", README)
}


def test_readme_lists_no_metric_that_is_not_there() -> None:
    ours = {
        family.name + ("_total" if family.type == "counter" else "")
        for metrics in (LearnerMetrics(), ServerMetrics())
        for family in metrics.registry.collect()
    }

    assert set(MENTIONED) - ours == set()


# --- settings, files, examples ------------------------------------------------------------------------------------


def test_every_setting_that_readme_names_exists() -> None:
    """Dotted names of the config or the policy; and variables of the environment."""
    dotted = {match[1] for span in SPANS if (match := re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(:.*)?", span))}
    variables = {name.lower().replace("__", ".") for name in re.findall(r"RELEARND_([A-Z_]+__[A-Z_]+)", README)}
    files = {name for name in dotted if (ROOT / name).exists()}
    modules = {name for name in dotted if (ROOT / name.replace(".", "/")).exists()}

    unknown = {
        name
        for name in (dotted | variables) - files - modules
        if not (is_setting(Config, name) or is_setting(Policy, name))
    }

    assert unknown == set()
    assert "kafka.bootstrap_servers" in dotted


def is_setting(model: type[BaseModel], dotted: str) -> bool:
    head, _, rest = dotted.partition(".")
    if head not in model.model_fields:
        return False
    inner = model.model_fields[head].annotation
    return not rest or (isinstance(inner, type) and issubclass(inner, BaseModel) and is_setting(inner, rest))


FOLDERS = r"(?:daemon|configs|policies|docker|tests|\.ci)"


def test_every_file_that_the_documents_name_exists() -> None:
    written_by_the_reader = {"configs/tickets.yaml"}
    texts = README + (ROOT / "CHANGELOG.md").read_text()
    named = set(re.findall(rf"(?<![\w/.]){FOLDERS}/[\w./-]*\w", texts)) - written_by_the_reader
    named |= {span for span in SPANS if re.fullmatch(r"[\w-]+\.(txt|toml|md)|LICENSE", span)}

    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert {"policies/default.yaml", "constraints.txt", "LICENSE"} <= named


def test_the_guide_in_the_package_names_modules_that_exist() -> None:
    guide = (ROOT / "daemon" / "__init__.py").read_text().split('"""')[1]
    named = set(re.findall(r"[a-z_]+(?:\.py|/)", guide))

    assert len(named) > 15
    assert {name for name in named if not (ROOT / "daemon" / name).exists()} == set()


def test_the_example_config_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RELEARND_")]:
        monkeypatch.delenv(name)
    example = next(block for kind, block in BLOCKS if kind == "yaml" and "configs/tickets.yaml" in block)
    (tmp_path / "tickets.yaml").write_text(example)

    config = load_config(tmp_path / "tickets.yaml")

    assert config.model == "tickets"
    assert config.kafka.fields.text == "ticket.body"
    assert config.kafka.fields.split is None
    assert (ROOT / config.policy).is_file()


def test_the_example_record_is_an_example() -> None:
    body = next(block for kind, block in BLOCKS if kind == "json").strip()
    now = datetime.now(UTC)
    record = Record(Position("topic", 0, 0), timestamp=now, key=None, value=body.encode())
    decoder = Decoder(FieldNames(), frozenset({"delivery"}), RecordsPolicy(), Splits(), max_record=2**20)

    decoded = decoder.decode(record, now)

    assert isinstance(decoded, Example)
    assert decoded.occurred_at.isoformat() == json.loads(body)["occurred_at"].replace("Z", "+00:00")


def test_the_example_halves_make_an_example() -> None:
    lines = next(block for _, block in BLOCKS if '"prediction"' in block).splitlines()
    kafka = KafkaConfig(predictions_topic="predictions", labels_topic="labels")
    now = datetime.now(UTC)
    halves = [
        half_readers(kafka, RecordsPolicy(), ())[topic](
            json.loads(line), Record(Position(topic, 0, 0), None, None, None), now
        )
        for topic, line in zip(("predictions", "labels"), lines, strict=True)
    ]

    (example,) = join(halves, [], splitter(Splits()), ambiguity=True).completed

    assert (example.label, example.source) == ("delivery", "agent-7")


def test_the_example_requests_are_requests() -> None:
    bodies = [(line, shlex.split(line)[-1]) for line in TYPED if line.startswith("curl") and " -d " in line]
    inferences = [parse_inference(body.encode()) for line, body in bodies if "/infer" in line]
    predictions = [json.loads(body) for line, body in bodies if "/predict" in line]

    assert [len(asked.texts) for asked in inferences] == [1, 1]
    assert [set(asked) for asked in predictions] == [{"text"}, {"texts"}]


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert re.search(rf"^## {re.escape(version)}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
