"""One client of the server, on one kept connection."""

import http.client
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One request and what came back. `error` says why it failed; else version and label are there."""

    ms: float
    version: int | None = None
    label: str | None = None
    error: str | None = None


class Traffic:
    """`look` is called by one thread until it is true, `ask` by one other from then on."""

    def __init__(self, ready_file: Path) -> None:
        self._ready_file = ready_file
        self._ready = threading.Event()
        self._address: tuple[str, int] | None = None
        self._connection: http.client.HTTPConnection | None = None

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    def look(self) -> bool:
        """Whether the server has ever said that it is ready: that it listens and has a model to answer with."""
        if not self._ready.is_set() and self._says_ready():
            self._ready.set()
        return self._ready.is_set()

    def ask(self, text: str) -> Reply:
        """What the server answers now. Never raises for what the server or the connection does."""
        began = time.perf_counter()
        try:
            status, body = self._post("/predict", json.dumps({"text": text}).encode())
            ms = (time.perf_counter() - began) * 1000
            if status != http.client.OK:
                return Reply(ms, error=f"HTTP {status}")
            answer = json.loads(body)
            return Reply(ms, version=int(answer["version"]), label=str(answer["label"]))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            self.close()
            return Reply((time.perf_counter() - began) * 1000, error=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _says_ready(self) -> bool:
        try:
            url = urlsplit(self._ready_file.read_text().strip())
            self._address = (url.hostname or "", url.port or 80)
            connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_SECONDS)
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == http.client.OK
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError):
            return False  # not listening yet

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert self._address, "ask() comes after look() has said yes"
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_SECONDS)
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read()
