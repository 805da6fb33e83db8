"""The control API's part about the data: see DataOperations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.routing import Route

from daemon.control.api import limit_of, read, write
from daemon.control.data import DataOperations, known_reason, position_of
from daemon.core.errors import UsageError
from daemon.core.upkeep import Chosen


def data_routes(data: DataOperations) -> Sequence[Route]:
    return [
        read("/v1/quarantine", lambda r: data.quarantined(_chosen(r.query_params), limit_of(r))),
        write("/v1/quarantine/release", lambda _, body: data.release(_chosen(body))),
        write("/v1/quarantine/drop", lambda _, body: data.drop_quarantined(_chosen(body))),
        read("/v1/dead-letters/one", lambda r: data.dead_letter(position_of(r.query_params.get("position", "")))),
        write("/v1/dead-letters/redrive", lambda _, body: data.redrive(_chosen(body))),
        write("/v1/dead-letters/drop", lambda _, body: data.drop_dead_letters(_chosen(body))),
        write("/v1/snapshots", lambda _, body: data.export(_folder(body), str(body.get("form", "")))),
        write("/v1/backups", lambda _, body: data.back_up(_folder(body))),
        read("/v1/doctor", lambda _: data.examine()),
        write("/v1/forget", lambda _, body: data.forget(_text(body, "subject"))),
        read("/v1/runs/{id}/data", lambda r: data.run_data(r.path_params["id"])),
    ]


def _chosen(values: Mapping[str, Any]) -> Chosen:
    position = _optional_text(values, "position")
    return Chosen(
        position=position_of(position) if position else None,
        reason=known_reason(_optional_text(values, "reason")),
        source=_optional_text(values, "source"),
        label=_optional_text(values, "label"),
    )


def _optional_text(values: Mapping[str, Any], name: str) -> str | None:
    return None if values.get(name) is None else _text(values, name)


def _folder(body: Mapping[str, Any]) -> Path:
    return Path(_text(body, "folder"))


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"say the {name}, as text; got {value!r}")
    return value
