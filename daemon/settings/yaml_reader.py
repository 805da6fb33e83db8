"""YAML as plain values, with the line of every key: strict where YAML is lax, and all faults at once.

Refused: keys written twice, anchors and aliases, tags of other languages, more than one document.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import SafeConstructor

from daemon.core.errors import ConfigError

Place = tuple[str | int, ...]  # the way to a value: section, field, index in a list
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and the value it is about."""

    place: Place
    reason: str


@dataclass(slots=True)
class Document:
    """The values of a file, where each was written (lines count from 1), and what was wrong with its YAML."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """Of the value, or of the nearest section around it that was written."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 0)


def read_yaml(path: Path) -> Document:
    """Raises ConfigError when there is no mapping to be had from the file."""
    document = Document()
    try:
        node = _compose(_text(path))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(f"{path}:{line}: this is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: this is not YAML: {error}") from error
    if node is None:
        raise ConfigError(f"{path}: the file is empty; write at least one section, or leave the file out")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: write `key: value` lines, not {_kind(node)}")
    document.values = _mapping(node, (), document)
    return document


def parse_scalar(text: str) -> Any:
    """One value as YAML reads it: '5' -> 5, 'true' -> True, 'null' -> None, '6h' -> '6h'; anything else as it stands."""
    try:
        node = _compose(text)
        return _constructed(node) if isinstance(node, yaml.ScalarNode) else text
    except (yaml.YAMLError, ValueError):
        return text


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ComposerError(None, None, "anchors and aliases are not read here", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _value(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, place, document)
    if node.tag not in _PLAIN_TAGS:
        document.faults.append(Fault(place, f"the tag '{node.tag}' is not read here"))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, index), document) for index, item in enumerate(node.value)]
    return _mapping(node, place, document)


def _mapping(node: yaml.Node, place: Place, document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, item in node.value:
        if not isinstance(key, yaml.ScalarNode):
            document.faults.append(Fault(place, f"a key is one word, not {_kind(key)}"))
            continue
        name = key.value  # as written: YAML would read the keys `on` and `no` as true and false
        here = (*place, name)
        if name in values:
            document.faults.append(
                Fault(here, f"written twice, on lines {document.lines[here]} and {key.start_mark.line + 1}")
            )
            continue
        document.lines[here] = key.start_mark.line + 1
        values[name] = _value(item, here, document)
    return values


def _scalar(node: yaml.ScalarNode, place: Place, document: Document) -> Any:
    try:
        return _constructed(node)
    except (yaml.YAMLError, ValueError) as error:
        reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        document.faults.append(Fault(place, f"'{node.value}' cannot be read: {reason}"))
        return None


def _constructed(node: yaml.ScalarNode) -> Any:
    return SafeConstructor().construct_object(node)  # type: ignore[no-untyped-call]
