"""Who may ask: API keys and TLS of the data port, the same for REST and gRPC.

A key comes as `Authorization: Bearer KEY`. The file of keys has one a line, as it is or as sha256:HEX; several are valid at once,
so that keys can be rotated. What is not declared open needs a key. The files of keys and of TLS are read again when they change.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import ssl
import stat
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from daemon.config import ServerConfig, TlsConfig
from daemon.core.errors import ConfigError

log = structlog.get_logger(__name__)

SHORTEST_KEY = 16  # characters
_LOOK_EVERY = 1.0  # seconds between two looks at the file
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_BEARER = b"bearer "
_REFUSAL = b'{"error":"send a valid key as Authorization: Bearer KEY"}'

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


T = TypeVar("T")
Monotonic = Callable[[], float]


class Reread(Generic[T]):
    """What `read` makes of files, made anew when one of them changes. Safe from any thread.

    Files that cannot be used change nothing; that is logged once, and they are tried again: not every reason shows in the files.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T], monotonic: Monotonic) -> None:
        """`read` raises ConfigError, here too, when the files cannot be used."""
        self._what = what
        self._paths = paths
        self._read = read
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen = self._tried = [_stamp(path) for path in paths]  # as they are valid; as they were looked at last
        self._value = read()
        self._look_at = monotonic() + _LOOK_EVERY

    def now(self) -> T:
        with self._lock:
            if self._monotonic() >= self._look_at:
                self._look_at = self._monotonic() + _LOOK_EVERY
                self._look()
            return self._value

    def _look(self) -> None:
        stamps = [_stamp(path) for path in self._paths]
        if stamps == self._seen:
            return
        new, self._tried = stamps != self._tried, stamps
        action = self._what.replace(" ", "_").lower()
        try:
            self._value = self._read()
        except ConfigError as error:
            if new:
                log.error(f"the {self._what} that were valid stay valid: {error}", action=f"{action}_not_read")
        else:
            self._seen = stamps
            log.info(f"the {self._what} were read again", action=f"{action}_read")


def _stamp(path: Path) -> tuple[int, ...]:
    """Another one when the file was changed; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


# --- API keys ---


class ApiKeys:
    """The valid keys, as digests only. Safe from any thread."""

    def __init__(self, path: Path, *, monotonic: Monotonic = time.monotonic) -> None:
        """Raises ConfigError when the file cannot be used."""
        self._digests = Reread("API keys", [path], lambda: read_keys(path), monotonic)

    def knows(self, authorization: bytes) -> bool:
        """Takes as long whichever key it is, and whether it is one."""
        scheme, key = authorization[: len(_BEARER)], authorization[len(_BEARER) :].strip()
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests.now()]
        return any(matches) and scheme.lower() == _BEARER


def read_keys(path: Path) -> Sequence[bytes]:
    """sha256 of every key in the file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read().decode().splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"server.api_keys_file: {path} cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"server.api_keys_file: {path} has no key; write one a line")
    plain = [key for key in keys if not _HASHED.fullmatch(key)]
    if any(len(key) < SHORTEST_KEY or not key.isascii() or " " in key or ":" in key for key in plain):
        raise ConfigError(
            f"server.api_keys_file: {path} has a line that is no key: at least {SHORTEST_KEY} ASCII characters without "
            "spaces and colons, or sha256: and 64 lower-case hex digits"
        )
    open_to = 0o077 if plain else 0o022
    if mode & open_to:
        raise ConfigError(
            f"server.api_keys_file: {path} has mode {mode:04o}; chmod 600 it, for others must not "
            f"{'read' if plain else 'write'} it"
        )
    return [_digest(key) for key in keys]


def _digest(key: str) -> bytes:
    hashed = _HASHED.fullmatch(key)
    return bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(key.encode()).digest()


class Guard:
    """ASGI: 401 for whatever is not in `open_paths` and brings no valid key, before anything else looks at it."""

    def __init__(self, app: App, keys: ApiKeys, *, open_paths: frozenset[str], on_refusal: Callable[[], None]) -> None:
        self._app = app
        self._keys = keys
        self._open = open_paths
        self._on_refusal = on_refusal

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["path"] in self._open or self._keys.knows(_authorization(scope["headers"])):
            await self._app(scope, receive, send)
            return
        self._on_refusal()
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL})


def _authorization(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name == b"authorization"), b"")


# --- TLS ---


@dataclass(frozen=True, slots=True)
class Identity:
    """What server.tls names, in PEM, and a context made of it."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Certificates:
    """Whom we show and whom we trust, for each connection as the files are then. Safe from any thread."""

    def __init__(self, tls: TlsConfig, *, monotonic: Monotonic = time.monotonic) -> None:
        """Raises ConfigError when the files cannot be used."""
        paths = [path for path in (tls.cert, tls.key, tls.client_ca) if path is not None]
        self._identity = Reread("certificates", paths, lambda: read_identity(tls), monotonic)

    def now(self) -> Identity:
        return self._identity.now()

    def guard(self, context: ssl.SSLContext) -> None:
        """From now on what `context` accepts goes by the files. Where clients must show a certificate no session is taken up again:
        they would be let in by one that an authority signed which is trusted no more."""
        context.sni_callback = self._for_handshake
        if self.now().client_ca is not None:
            context.options |= ssl.OP_NO_TICKET  # TLS 1.2
            context.num_tickets = 0  # TLS 1.3

    def _for_handshake(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Runs before the certificate is shown and the client's is checked."""
        connection.context = self.now().context


def read_identity(tls: TlsConfig) -> Identity:
    """cert and key, fit for one another, and client_ca if it is set. Raises ConfigError."""
    assert tls.cert is not None and tls.key is not None
    cert, key = _read("cert", tls.cert), _read("key", tls.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password="")  # an encrypted key would be asked for at the terminal
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"server.tls: {tls.cert} and {tls.key} are no certificate chain and its unencrypted key, in PEM: {error}"
        ) from error
    if tls.client_ca is None:
        return Identity(cert, key, None, context)
    client_ca = _read("client_ca", tls.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(tls.client_ca)
    except OSError as error:
        raise ConfigError(f"server.tls.client_ca: {tls.client_ca} holds no certificates in PEM: {error}") from error
    return Identity(cert, key, client_ca, context)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"server.tls.{name}: {path} cannot be read: {error.strerror}") from error


def warn_when_open_to_others(limits: ServerConfig) -> None:
    """Say it when whoever reaches the address may ask."""
    if limits.api_keys_file is None and limits.tls.client_ca is None and not _loopback(limits.host):
        log.warning(
            f"whoever reaches {limits.host} may ask this server: neither server.api_keys_file nor server.tls.client_ca is set",
            action="open_to_others",
            host=limits.host,
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
