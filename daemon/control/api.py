"""The learner's control API: JSON over HTTP on a unix socket (mode 0600), so that only the owner's processes reach it.

Reads answer from the store, the registry and the board; writes go through Operations. Errors are {"error": sentence} with
404 not found, 409 conflict, 403 the learner may not read or write a file, 507 the store or a file of it failed, 500 an error
of our own, 400 anything else the operator can mend.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter
from typing import Any, TypeGuard

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.control.data import known_reason
from daemon.control.operations import Operations
from daemon.core.errors import (
    ArtefactError,
    ConflictError,
    InputOutputError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    RelearndError,
    StoreError,
    of_system,
)
from daemon.core.ports import Registry, Store
from daemon.core.types import ServerReport
from daemon.runtime.health import Board

log = structlog.get_logger(__name__)

MAX_LIMIT = 1000
LABELS_SHOWN = 100
_LARGEST = (1 << 63) - 1  # of offsets, in Kafka and in the store
_LIMIT = re.compile(r"[0-9]{1,4}")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Views:
    """What reads answer from."""

    model: str
    store: Store
    registry: Registry
    board: Board
    servers: Callable[[], Sequence[ServerReport]]
    lag: Callable[[], dict[str, int]]
    performance: Callable[[], Any]
    label_delays: Callable[[], Sequence[float]]  # seconds, rising

    def status(self) -> dict[str, Any]:
        counts = self.store.counts()
        activity = self.board.activity
        paused = self.store.get("paused")
        newest = self.store.decisions(1)
        shown = _most(counts.by_label)
        return {
            "model": self.model,
            "stage": "paused" if paused and activity.stage == "idle" else activity.stage,
            "since": activity.since,
            "paused": paused,
            "stream": {
                "examples": counts.examples,
                "by_split": counts.by_split,
                "labels": len(counts.by_label),
                "by_label": shown,
                "dead_letters": counts.dead_letters,
                "dead_letters_by_reason": counts.dead_letters_by_reason,
                "quarantined": counts.quarantined,
                "quarantined_by_reason": counts.quarantined_by_reason,
                "held_out_by_label": {
                    label: count for label, count in counts.held_out_by_label.items() if label in shown
                },
                "waiting_halves": counts.halves,
                "label_delay": _quantiles(self.label_delays()),
                "ingest_paused": self.store.get("ingest_paused"),
                "gap_offsets": counts.gap_offsets,
                "last_seq": counts.last_seq,
                "newest_occurred_at": counts.newest_occurred_at,
                "lag": sum(self.lag().values()),
                "lag_by_partition": self.lag(),
            },
            "aliases": self.registry.aliases(self.model),
            "servers": self.servers(),
            "run": None
            if activity.run_id is None
            else {"id": activity.run_id, "triggers": activity.triggers, "progress": activity.progress},
            "drift": self.board.drift,
            "drift_in_a_row": (self.store.get("drift_in_a_row") or {}).get("count", 0),
            "performance": self.performance(),
            "last_decision": newest[0] if newest else None,
            "components": self.board.components,
        }

    def models(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "aliases": self.registry.aliases(self.model),
            "versions": self.registry.versions(self.model),
        }

    def dead_letters(self, limit: int, reason: str | None) -> dict[str, Any]:
        """Without the records' bytes: content is shown on the owner's machine by a command of its own."""
        return {
            "total": self.store.counts().dead_letters,
            "dead_letters": [
                {
                    "position": str(letter.position),
                    "reason": letter.reason,
                    "detail": letter.detail,
                    "rejected_at": letter.rejected_at,
                }
                for letter in self.store.listed_letters(limit, reason=reason)
            ],
        }


def _most(by_label: Mapping[str, int]) -> dict[str, int]:
    """The labels with the most examples."""
    return dict(nlargest(LABELS_SHOWN, by_label.items(), key=itemgetter(1)))


def _quantiles(rising: Sequence[float]) -> dict[str, float] | None:
    if not rising:
        return None
    return {"p50": rising[len(rising) // 2], "p95": rising[len(rising) * 95 // 100], "examples": len(rising)}


def read(path: str, answer: Callable[[Request], Any]) -> Route:
    return Route(path, _json(answer), methods=["GET"])


def write(path: str, act: Callable[[Request, dict[str, Any]], Any]) -> Route:
    return Route(path, _command(act), methods=["POST"])


def control_app(views: Views, operations: Operations, more: Sequence[Route] = ()) -> Starlette:
    """The ASGI application. `more`: what else an operator may ask and do."""
    return Starlette(
        routes=[
            read("/v1/status", lambda _: views.status()),
            read("/v1/models", lambda _: views.models()),
            read("/v1/models/{number:int}", lambda r: views.registry.version(views.model, r.path_params["number"])),
            read("/v1/decisions", lambda r: {"decisions": views.store.decisions(limit_of(r))}),
            read("/v1/runs", lambda r: {"runs": views.store.runs(limit_of(r))}),
            read("/v1/runs/{id}", lambda r: views.store.run(r.path_params["id"])),
            read(
                "/v1/dead-letters",
                lambda r: views.dead_letters(limit_of(r), known_reason(r.query_params.get("reason"))),
            ),
            read("/v1/coverage", lambda _: views.store.coverage()),
            write("/v1/retrain", lambda _, body: operations.retrain(_reason(body))),
            write("/v1/promote", lambda _, body: operations.promote(_version(body), _reason(body))),
            write(
                "/v1/rollback",
                lambda _, body: operations.rollback(_version(body) if "version" in body else None, _reason(body)),
            ),
            write("/v1/canary", lambda _, body: operations.canary(_version_or_off(body), _share(body), _reason(body))),
            write("/v1/shadow", lambda _, body: operations.shadow(_version_or_off(body), _reason(body))),
            write(
                "/v1/accept-log",
                lambda _, body: operations.accept_log(
                    str(body.get("topic")), _number(body, "partition"), _number(body, "begin_at"), _reason(body)
                ),
            ),
            write("/v1/pause", lambda _, body: operations.pause(_reason(body))),
            write("/v1/ingest/resume", lambda _, body: operations.resume_ingest(_reason(body))),
            write("/v1/resume", lambda _, body: operations.resume(_reason(body))),
            write("/v1/runs/{id}/cancel", lambda r, body: operations.cancel(r.path_params["id"], _reason(body))),
            *more,
        ]
    )


def _json(answer: Callable[[Request], Any]) -> Handler:
    async def handle(request: Request) -> Response:
        return await run_in_threadpool(_answer, lambda: answer(request))

    return handle


def _command(act: Callable[[Request, dict[str, Any]], Any]) -> Handler:
    async def handle(request: Request) -> Response:
        body = await request.body()

        def acted() -> Any:
            return act(request, msgspec.json.decode(body or b"{}", type=dict[str, Any])) or {"ok": True}

        return await run_in_threadpool(_answer, acted)

    return handle


def _answer(work: Callable[[], Any]) -> Response:
    try:
        return _response(200, work())
    except NotFoundError as error:
        return _response(404, {"error": str(error)})
    except ConflictError as error:
        return _response(409, {"error": str(error)})
    except OutcomeUnknownError as error:
        return _response(507, {"error": f"{error}. Give the command again: what was done is not done twice"})
    except OSError as error:
        return _failed(of_system(error))
    except (StoreError, ArtefactError, InputOutputError) as error:
        return _failed(error)
    except (RelearndError, msgspec.MsgspecError) as error:
        return _response(400, {"error": str(error)})
    except Exception as error:  # else the connection would be closed on the next command too
        log.error(f"a command failed: {error}", action="command_failed", exc_info=error)
        return _response(500, {"error": f"the learner failed at this ({type(error).__name__}); its log says where"})


def _failed(error: RelearndError) -> Response:
    log.error(f"a command failed: {error}", action="command_failed")
    return _response(403 if isinstance(error, PermissionDeniedError) else 507, {"error": str(error)})


def _response(code: int, content: Any) -> Response:
    return Response(msgspec.json.encode(content), code, media_type="application/json")


def limit_of(request: Request) -> int:
    text = request.query_params.get("limit", "20")
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        raise RelearndError(f"limit must be a number from 1 to {MAX_LIMIT}; got {text!r}")
    return int(text)


def _number(body: dict[str, Any], name: str) -> int | None:
    number = body.get(name)
    if number is not None and not (_is_whole(number) and 0 <= number <= _LARGEST):
        raise RelearndError(f"{name} is a whole number from 0 to {_LARGEST}; got {number!r}")
    return number


def _is_whole(value: Any) -> TypeGuard[int]:
    """Python takes true for 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def _reason(body: dict[str, Any]) -> str:
    return str(body.get("reason") or "")


def _version_or_off(body: dict[str, Any]) -> int | None:
    return None if body.get("version") == "off" else _version(body)


def _share(body: dict[str, Any]) -> float:
    share = body.get("share", 0.0)
    if not isinstance(share, int | float) or isinstance(share, bool):
        raise RelearndError(f"a share is a number from 0 to 1; got {share!r}")
    return float(share)


def _version(body: dict[str, Any]) -> int:
    version = body.get("version")
    if not _is_whole(version):
        raise RelearndError(f"say which version, as a number; got {version!r}")
    return version
