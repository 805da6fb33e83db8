"""How commands reach a learner."""

from pathlib import Path
from typing import Any

import httpx

from daemon.core.errors import (
    ConflictError,
    InputOutputError,
    NotFoundError,
    PermissionDeniedError,
    RelearndError,
    UnavailableError,
    UsageError,
)

_ERRORS = {
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    500: RelearndError,
    507: InputOutputError,
}


class ControlClient:
    """One learner's control API. Raises UnavailableError when nobody answers, else what the learner said."""

    def __init__(self, socket: Path, *, timeout: float = 30.0) -> None:
        self._socket = socket
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://learner", timeout=timeout
        )

    def get(self, path: str, **query: Any) -> Any:
        return self._send("GET", path, params=query)

    def post(self, path: str, **body: Any) -> Any:
        return self._send("POST", path, json={key: value for key, value in body.items() if value is not None})

    def close(self) -> None:
        self._http.close()

    def _send(self, method: str, path: str, **what: Any) -> Any:
        try:
            response = self._http.request(method, path, **what)
        except UnicodeEncodeError as error:
            raise UsageError(f"{error.object!r} is not text: give it in UTF-8") from error
        except httpx.TransportError as error:
            raise UnavailableError(
                f"no learner answers at {self._socket} ({error}). Is `relearnd learn` running, with the same --config?"
            ) from error
        if response.is_success:
            return response.json()
        raise _ERRORS.get(response.status_code, UsageError)(_sentence(response))


def _sentence(response: httpx.Response) -> str:
    """What the learner said; what HTTP said when it was not the learner's own refusal."""
    if response.headers.get("content-type") == "application/json":
        return str(response.json()["error"])
    return f"{response.request.url.path}: {response.status_code} {response.reason_phrase}"
