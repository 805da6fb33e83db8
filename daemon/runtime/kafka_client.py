"""How every Kafka client of ours reaches the brokers: addresses, TLS, SASL, and secrets from files or the environment.

A secret is read when a client is built and goes nowhere but into that client: not into a log line, an error or a repr.
"""

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import httpx
from kafka.errors import (
    AuthorizationError,
    KafkaConnectionError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from daemon.config import KafkaConfig, KafkaSecurity
from daemon.core.errors import ConfigError, UnauthorizedError

Client = TypeVar("Client")

REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError)

COMPARED_WITH = frozenset({"3.0.9", "3.0.10", "3.0.11", "3.0.12"})
"""Releases of kafka-python whose private parts are as we expect them where we reach into them."""

PIECE = 1 << 18  # bytes of one read from a socket
TOKEN_LIMIT = 5.0  # seconds for the token endpoint to answer
TOKEN_RENEWED_AT = 0.8  # of its lifetime
HANDSHAKE_LIMIT = 5.0  # seconds

for _name in ("kafka.net", "kafka.protocol"):  # their debug lines hold what is sent, passwords too
    logging.getLogger(_name).setLevel(logging.WARNING)


class Secret(str):
    """Text that does not show itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def brokers(config: KafkaConfig) -> dict[str, Any]:
    """What every client of kafka-python is told. Raises ConfigError when a secret or certificate cannot be read."""
    return {
        "bootstrap_servers": config.bootstrap_servers,
        "client_id": config.client_id,
        "security_protocol": config.security.protocol,
        **_tls(config.security),
        **_sasl(config.security),
    }


def connected(client: Callable[..., Client], **settings: Any) -> Client:
    """Build a client of kafka-python. One that cannot connect leaves its thread and sockets behind; here they are closed.

    Where brokers refused us, that is what is raised, and not that nobody answered in time.
    """
    owners: list[KafkaNetClient] = []
    tried: list[Any] = []

    def owner(**configs: Any) -> KafkaNetClient:
        owners.append(KafkaNetClient(**configs))
        with suppress(AttributeError):  # of another release, in which only why we are refused stays unknown
            _note_connections(owners[0], tried)
        if version("kafka-python") in COMPARED_WITH:
            _read_in_large_pieces(owners[0])
        return owners[0]

    try:
        built = client(**settings, kafka_client=owner)
    except Exception as error:
        for left in owners:
            left.close()
        raise _refusal(tried) or error from None
    with suppress(AttributeError):
        del owners[0]._manager.get_connection
    return built


def _note_connections(client: KafkaNetClient, tried: list[Any]) -> None:
    """While the client looks for a broker it only logs why a connection failed; so we keep the connections it tries, and end
    the search when each broker that we named has refused us."""
    manager = client._manager
    get = manager.get_connection

    def get_and_note(*asked: Any, **how: Any) -> Any:
        named = {broker.node_id for broker in manager.cluster.bootstrap_brokers()}
        if named <= {connection.node_id for connection in tried if _refusal([connection])}:
            raise _refusal(tried) or KafkaConnectionError("no broker is named")
        connection = get(*asked, **how)
        tried.append(connection)
        return connection

    manager.get_connection = get_and_note


def _read_in_large_pieces(client: KafkaNetClient) -> None:
    """The client reads 4 kB at a time; with records of 2 kB that is over a quarter of the time. And it throws away what came
    before a broker hung up, which is how brokers say that they refuse us."""
    manager = client._manager
    build = manager._build_transport

    async def build_transport(*asked: Any, **how: Any) -> Any:
        transport = await build(*asked, **how)
        if type(transport) in (KafkaTCPTransport, KafkaSSLTransport):
            transport._sock_recv = partial(_receive, transport._sock)
        return transport

    manager._build_transport = build_transport


def _receive(connection: socket.socket) -> tuple[bytes, Exception | None]:
    """What has arrived; or, if nothing has, why there will be no more."""
    pieces: list[bytes] = []
    failure: Exception | None = None
    try:
        while piece := connection.recv(PIECE):
            pieces.append(piece)
        failure = KafkaConnectionError("socket disconnected")
    except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        pass
    except OSError as error:
        failure = KafkaConnectionError(error)
    return b"".join(pieces), None if pieces else failure


def _refusal(tried: list[Any]) -> Exception | None:
    failures = [getattr(getattr(connection, "init_future", None), "exception", None) for connection in tried]
    return next((failure for failure in failures if isinstance(failure, REFUSALS)), None)


def refusal(error: BaseException, config: KafkaConfig) -> UnauthorizedError | None:
    """What to tell an operator when brokers refuse us, or we them; None when it is something else."""
    security = config.security
    if isinstance(error, REFUSALS):
        who = f" as {security.username}" if security.username else ""
        return UnauthorizedError(
            f"unauthorized: the brokers refuse the {security.mechanism or 'connection'}{who}: {error}; check "
            "kafka.security, the user and its secret"
        )
    if isinstance(error, AuthorizationError):
        return UnauthorizedError(
            f"unauthorized: {error}; allow reading the topics and using the group {config.group_id} in the brokers' access list"
        )
    fault = _tls_fault(config) if "SSL" in security.protocol else None
    return UnauthorizedError(f"unauthorized: {fault}") if fault else None


# --- TLS ----------------------------------------------------------------------------------------------------------


def _tls(security: KafkaSecurity) -> dict[str, Any]:
    if "SSL" not in security.protocol:
        return {}
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = security.check_hostname
        if security.cert_file:
            password = os.environ.get("RELEARND_KAFKA_KEY_PASSWORD", "")
            context.load_cert_chain(security.cert_file, security.key_file, password)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(str(file) for file in (security.ca_file, security.cert_file, security.key_file) if file)
        raise ConfigError(f"kafka.security: the certificates or key in {named} cannot be used: {error}") from error
    return {"ssl_context": context}


def _tls_fault(config: KafkaConfig) -> str | None:
    """Why no encrypted connection is possible. The client says only that it could not connect, so we try ourselves."""
    for server in config.bootstrap_servers:
        host, _, port = server.rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host, int(port)), HANDSHAKE_LIMIT) as plain:
            try:
                with _tls(config.security)["ssl_context"].wrap_socket(plain, server_hostname=host) as encrypted:
                    encrypted.settimeout(0.5)
                    with suppress(TimeoutError):
                        encrypted.recv(1)  # TLS 1.3: that our certificate was refused comes after the handshake
            except ssl.SSLCertVerificationError as error:
                return f"{server}: its certificate is not trusted: {error.verify_message}; check kafka.security.ca_file"
            except ssl.SSLError as error:
                return f"{server}: no encrypted connection: {error.reason or error}; check kafka.security"
    return None


# --- SASL ---------------------------------------------------------------------------------------------------------


def _sasl(security: KafkaSecurity) -> dict[str, Any]:
    if security.mechanism is None:
        return {}
    if security.mechanism == "OAUTHBEARER":
        provider = TokenFile(security.token_file) if security.token_file else ClientCredentials(security)
        return {"sasl_mechanism": security.mechanism, "sasl_oauth_token_provider": provider}
    return {
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": _secret(security.password_file, "password_file", "RELEARND_KAFKA_PASSWORD"),
    }


def _secret(file: Path | None, field: str, variable: str) -> Secret:
    if file is not None:
        try:
            return Secret(file.read_text().rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"kafka.security.{field}: {file} cannot be read: {type(error).__name__}") from error
    secret = os.environ.get(variable)
    if not secret:
        raise ConfigError(f"kafka.security: there is neither {field} nor the variable {variable}")
    return Secret(secret)


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """A token that somebody else renews, read at each connection."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.token()

    def token(self) -> str:
        return _secret(self._path, "token_file", "")


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """OAuth 2.0 client credentials: one request for a token, the same for all connections until most of its life is over."""

    def __init__(self, security: KafkaSecurity, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._security = security
        self._secret = _secret(security.client_secret_file, "client_secret_file", "RELEARND_KAFKA_CLIENT_SECRET")
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._token = Secret()
        self._renew_at = float("-inf")

    def token(self) -> str:
        with self._lock:
            if self._monotonic() >= self._renew_at:
                self._renew()
            return self._token

    def _renew(self) -> None:
        wanted = {"grant_type": "client_credentials"}
        if self._security.scope:
            wanted["scope"] = self._security.scope
        url = str(self._security.token_url)
        try:
            answer = httpx.post(
                url, data=wanted, auth=(str(self._security.client_id), str(self._secret)), timeout=TOKEN_LIMIT
            )
            answer.raise_for_status()
            body = answer.json()
            self._token = Secret(body["access_token"])
            lifetime = float(body.get("expires_in", 0))
        except httpx.HTTPStatusError as error:
            raise SaslAuthenticationFailedError(f"{url} answers {error.response.status_code}") from None
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise SaslAuthenticationFailedError(f"{url} gave no token: {type(error).__name__}") from None
        self._renew_at = self._monotonic() + lifetime * TOKEN_RENEWED_AT
