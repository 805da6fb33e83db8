"""The shipped policy and config files: each loads, says every field, and its comments tell the truth about each."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from daemon.config import Config, load_config
from daemon.policy.load import load_policy
from daemon.policy.schema import Policy
from daemon.settings.units import parse_duration, parse_share, parse_size

ROOT = Path(__file__).parent.parent
# By name: operators keep files of their own in these folders, and need not comment them as we do.
POLICIES = [ROOT / "policies" / f"{name}.yaml" for name in ("default", "cautious", "demo")]
CONFIGS = [ROOT / "configs" / f"{name}.yaml" for name in ("dev", "production")]
FILES = [pytest.param(path, Policy, "live", id=path.name) for path in POLICIES] + [
    pytest.param(path, Config, "restart", id=path.name) for path in CONFIGS
]
COMMENTED_KEY = re.compile(r"(?P<comment>(?:^ *#.*\n)*)^(?P<indent> *)(?P<key>\w+):", re.MULTILINE)


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_every_policy_loads(path: Path) -> None:
    assert load_policy(path).version == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_names_a_policy_that_is_shipped(path: Path) -> None:
    assert load_config(path).policy.name in {policy.name for policy in POLICIES}


def test_the_default_policy_is_the_schema_in_words() -> None:
    assert load_policy(ROOT / "policies" / "default.yaml") == Policy()


def test_the_development_config_is_the_schema_in_words() -> None:
    assert load_config(ROOT / "configs" / "dev.yaml") == Config()


@pytest.mark.parametrize(("path", "model", "when"), FILES)
def test_every_field_is_written(path: Path, model: type[BaseModel], when: str) -> None:
    assert list(_missing(model, yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(("path", "model", "when"), FILES)
def test_every_field_has_a_comment_with_its_kind_its_default_and_when_a_change_is_seen(
    path: Path, model: type[BaseModel], when: str
) -> None:
    comments = _comments(path.read_text())
    wrong = [
        f"{'.'.join(place)}: the comment must end with {tag}"
        for place, tag in _tags(model, when)
        if not (comments.get(place, "").endswith(tag) and len(comments[place]) > len(tag) + 10)
    ]
    assert wrong == []


NEVER_NOTHING = [
    "server.poll_every",
    "server.request_timeout",
    "server.max_body",
    "server.feedback.max_file",
    "kafka.batch_bytes",
    "kafka.max_record",
    "kafka.max_unpacked",
    "kafka.poll_timeout",
    "kafka.schema_registry.timeout",
    "store.memory_limit",
    "store.retention.keep_for",
    "training.time_limit",
    "training.stall_limit",
    "drift.observe_every",
    "drift.max_lateness",
    "records.quality.max_ahead",
]


@pytest.mark.parametrize("place", NEVER_NOTHING)
def test_no_time_and_no_room_are_refused_where_nothing_could_work(place: str) -> None:
    """0s to wait is a loop without a pause, 0B of room refuses everything, and to keep for 0s deletes everything."""
    *sections, field = place.split(".")
    model: type[BaseModel] = Policy if sections[0] in Policy.model_fields else Config
    with pytest.raises(ValueError, match=f"{field}\n.*more than 0"):
        model.model_validate(_nested(sections, {field: "0B" if field in SIZES else "0s"}))


SIZES = {"max_body", "max_file", "batch_bytes", "max_record", "max_unpacked", "memory_limit"}


def _nested(sections: list[str], values: dict[str, Any]) -> dict[str, Any]:
    for section in reversed(sections):
        values = {section: values}
    return values


@pytest.mark.parametrize(
    "ports",
    [
        {"server": {"port": 9000}, "metrics": {"port": 9000}},
        {"server": {"port": 9000, "grpc_port": 9000}},
        {"server": {"grpc_port": 9464}},
    ],
)
def test_two_doors_at_one_port_are_refused(ports: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(9000|9464).*another"):
        Config.model_validate(ports)


def test_a_store_is_not_given_less_memory_than_its_checkpoints_need() -> None:
    with pytest.raises(ValueError, match="at least 256MiB"):
        Config.model_validate({"store": {"memory_limit": "255MiB"}})


def test_any_free_port_may_be_asked_for_twice() -> None:
    Config.model_validate({"server": {"port": 0, "grpc_port": 0}, "metrics": {"port": 0}})


# --- what a file says ---


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment above each key, as one line, by the way to the key."""
    found: dict[tuple[str, ...], str] = {}
    place: list[str] = []
    for match in COMMENTED_KEY.finditer(text):
        place = [*place[: len(match["indent"]) // 2], match["key"]]
        found[tuple(place)] = " ".join(line.strip().lstrip("# ") for line in match["comment"].splitlines())
    return found


def _missing(model: type[BaseModel], values: Any, above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name not in values:
            yield above + name
        elif _is_section(field.annotation):
            yield from _missing(field.annotation, values[name], f"{above}{name}.")  # type: ignore[arg-type]


# --- what the schema says ---


def _tags(model: type[BaseModel], when: str, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, field in model.model_fields.items():
        place = (*above, name)
        if _is_section(field.annotation):
            yield from _tags(field.annotation, when, place)  # type: ignore[arg-type]
        else:
            yield place, f"[{_kind(field)}; default {_default(field)}; {when}]"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


UNITS = {parse_duration: "duration", parse_share: "share", parse_size: "size"}


def _kind(field: FieldInfo) -> str:
    for mark in field.metadata:
        if getattr(mark, "func", None) in UNITS:
            return UNITS[mark.func]
    return _kind_of(field.annotation)


def _kind_of(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        return next((UNITS[mark.func] for mark in marks if getattr(mark, "func", None) in UNITS), None) or _kind_of(
            inner
        )
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join("none" if kind is NoneType else _kind_of(kind) for kind in get_args(annotation))
    if get_origin(annotation) is list:
        return "list"
    if get_origin(annotation) is dict:
        return "section by name"
    kinds = {
        bool: "true | false",
        int: "whole number",
        float: "number",
        str: "text",
        Path: "path",
        timedelta: "duration",
    }
    return kinds[annotation]


def _default(field: FieldInfo) -> str:
    if isinstance(field.default, dict):
        return ", ".join(field.default) or "none"
    if isinstance(field.default, bool | NoneType):
        return {True: "true", False: "false", None: "none"}[field.default]
    if isinstance(field.default, list):
        return f"[{', '.join(field.default)}]"
    return str(field.default)
