"""How Kafka clients get their secrets: what a config may say, and a token for client credentials."""

import base64
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
from kafka.errors import SaslAuthenticationFailedError
from pydantic import ValidationError

from daemon.config import KafkaConfig, KafkaSecurity, load_config
from daemon.core.errors import ConfigError
from daemon.runtime import kafka_client
from daemon.runtime.kafka_client import ClientCredentials, Secret, TokenFile, brokers, connected

SECRET = "canary-77aa31"
SASL = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}


@dataclass
class Issuer:
    """An endpoint that gives tokens, and what it was asked."""

    url: str = ""
    status: int = 200
    lifetime: float = 100.0
    asked: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            issuer.asked.append({"authorization": self.headers["Authorization"], **body})
            answer = {"access_token": f"token-{len(issuer.asked)}", "expires_in": issuer.lifetime}
            self.send_response(issuer.status)
            self.end_headers()
            self.wfile.write(msgspec.json.encode(answer))

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}/token"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield issuer
    server.shutdown()
    thread.join()
    server.server_close()


def security(**values: Any) -> KafkaSecurity:
    return KafkaSecurity.model_validate(values)


@pytest.fixture
def credentials(issuer: Issuer, tmp_path: Path) -> KafkaSecurity:
    (tmp_path / "secret").write_text(SECRET)
    return security(**SASL, token_url=issuer.url, client_id="us", client_secret_file=tmp_path / "secret", scope="kafka")


def test_one_token_serves_all_connections_until_most_of_its_life_is_over(
    issuer: Issuer, credentials: KafkaSecurity
) -> None:
    now = 0.0
    provider = ClientCredentials(credentials, monotonic=lambda: now)
    assert [str(provider.token()) for _ in range(3)] == ["token-1"] * 3
    now = 81.0
    assert str(provider.token()) == "token-2"
    assert issuer.asked[0] == {
        "authorization": "Basic " + base64.b64encode(f"us:{SECRET}".encode()).decode(),
        "grant_type": ["client_credentials"],
        "scope": ["kafka"],
    }


def test_an_endpoint_that_refuses_is_a_refusal_without_the_secret(issuer: Issuer, credentials: KafkaSecurity) -> None:
    issuer.status = 401
    provider = ClientCredentials(credentials)
    with pytest.raises(SaslAuthenticationFailedError, match="401") as raised:
        provider.token()
    assert SECRET not in str(raised.value) + repr(vars(provider))


def test_a_token_file_is_read_at_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    provider = TokenFile(path)
    assert provider.token() == "first"
    path.write_text("second\n")
    assert provider.token() == "second"


def test_a_secret_does_not_show_itself() -> None:
    assert SECRET not in repr({"password": Secret(SECRET)})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"password": SECRET}, "password_file"),
        ({"client_secret": SECRET}, "client_secret_file"),
        ({"token": SECRET}, "token_file"),
        ({"protocol": "SASL_SSL"}, "mechanism"),
        ({"mechanism": "PLAIN", "username": "us"}, "mechanism"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN"}, "username"),
        (SASL, "token_file"),
        ({**SASL, "token_file": "t", "token_url": "https://issuer", "client_id": "us"}, "either"),
        ({**SASL, "token_url": "http://issuer.example", "client_id": "us"}, "https"),
        ({"protocol": "SSL", "cert_file": "c"}, "belong together"),
    ],
)
def test_what_a_config_may_not_say(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        security(**values)


def test_a_secret_in_a_config_file_is_refused_without_repeating_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"kafka:\n  security:\n    password: {SECRET}\n")
    with pytest.raises(ConfigError, match=r"kafka\.security.*password_file") as raised:
        load_config(path)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("fault", ["missing", "nothing"])
def test_a_secret_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.delenv("RELEARND_KAFKA_PASSWORD", raising=False)
    named = {"password_file": str(tmp_path / "missing")} if fault == "missing" else {}
    config = KafkaConfig(security=security(protocol="SASL_PLAINTEXT", mechanism="PLAIN", username="us", **named))
    with pytest.raises(ConfigError, match=r"missing cannot be read|RELEARND_KAFKA_PASSWORD"):
        brokers(config)


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    config = KafkaConfig(security=security(protocol="SSL", ca_file=str(tmp_path / "ca.pem")))
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be used"):
        brokers(config)


def test_the_dead_letter_topic_is_none_of_those_read() -> None:
    with pytest.raises(ValidationError, match="one of the topics that are read"):
        KafkaConfig(topics=["examples"], dead_letter_topic="examples")


def test_a_release_that_connects_another_way_connects_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Another:
        """A client of a release that was not compared with."""

    monkeypatch.setattr(kafka_client, "KafkaNetClient", Another)
    monkeypatch.setattr(kafka_client, "version", lambda name: "3.99.0")
    assert isinstance(connected(lambda *, kafka_client: kafka_client()), Another)
