"""Secured clusters: every way in that the config offers, every way of being turned away, and no secret anywhere."""

import logging
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from structlog.testing import capture_logs

from daemon.config import KafkaConfig
from daemon.core.errors import ConfigError, SourceError, UnauthorizedError
from daemon.core.states import RejectReason
from daemon.core.stream import DeadLetter, Position
from daemon.demo.brokers import Broker, create_topic
from daemon.ingest import kafka_source
from daemon.ingest.kafka_letters import KafkaLetters
from daemon.ingest.kafka_source import KafkaSource
from daemon.runtime.kafka_client import brokers as client_settings
from tests.secured import CANARY, Certificates, unsecured_token

pytestmark = pytest.mark.kafka

Settings = dict[str, Any]


@pytest.fixture
def topic(cluster: Broker) -> str:
    """With one record."""
    name = f"secured-{uuid.uuid4().hex}"
    create_topic(cluster, name, partitions=1)
    producer = KafkaProducer(bootstrap_servers=cluster.bootstrap_servers)
    producer.send(name, b"seen").get(10)
    producer.close()
    return name


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{CANARY}\n")
    return path


def source(cluster: Broker, listener: str, topic: str, security: Settings) -> KafkaSource:
    config = KafkaConfig.model_validate(
        {"bootstrap_servers": [cluster.listeners[listener]], "topics": [topic], "group_id": topic, "security": security}
    )
    assert CANARY not in repr(config)
    return KafkaSource(config, store_id="a-store")


def values(opened: KafkaSource) -> list[bytes | None]:
    try:
        opened.start({})
        for _ in range(40):
            if records := opened.poll(0.5):
                return [record.value for record in records]
        return []
    finally:
        opened.close()


def named(mechanism: str, secret: Path, username: str = "reader", protocol: str = "SASL_PLAINTEXT") -> Settings:
    return {"protocol": protocol, "mechanism": mechanism, "username": username, "password_file": str(secret)}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_from_a_file(cluster: Broker, topic: str, secret: Path, mechanism: str) -> None:
    assert values(source(cluster, "SASL", topic, named(mechanism, secret))) == [b"seen"]


def test_a_password_from_the_environment(cluster: Broker, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARND_KAFKA_PASSWORD", CANARY)
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "reader"}
    assert values(source(cluster, "SASL", topic, security)) == [b"seen"]


def test_a_password_over_tls(cluster: Broker, topic: str, secret: Path, certificates: Certificates) -> None:
    security = named("SCRAM-SHA-512", secret, protocol="SASL_SSL") | {"ca_file": str(certificates.ca)}
    assert values(source(cluster, "SASLSSL", topic, security)) == [b"seen"]


def test_a_token_from_a_file(cluster: Broker, topic: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(unsecured_token("reader"))
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "OAUTHBEARER", "token_file": str(token)}
    assert values(source(cluster, "SASL", topic, security)) == [b"seen"]


def test_a_certificate_of_our_own(cluster: Broker, topic: str, certificates: Certificates) -> None:
    security = {
        "protocol": "SSL",
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.client),
        "key_file": str(certificates.client_key),
    }
    assert values(source(cluster, "MUTUAL", topic, security)) == [b"seen"]


# --- turned away --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "listener"),
    [("PLAIN", "SASLSSL"), ("SCRAM-SHA-256", "SASLSSL"), ("SCRAM-SHA-512", "SASL")],
)
def test_a_wrong_password_ends_the_start(
    cluster: Broker,
    topic: str,
    tmp_path: Path,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: str,
    listener: str,
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 6.0)
    wrong = tmp_path / "wrong"
    wrong.write_text(f"not-{CANARY}")
    security = named(mechanism, wrong)
    if listener == "SASLSSL":
        security |= {"protocol": "SASL_SSL", "ca_file": str(certificates.ca)}
    with pytest.raises(ConfigError, match=f"unauthorized.*{mechanism} as reader.*kafka.security") as raised:
        values(source(cluster, listener, topic, security))
    assert CANARY not in str(raised.value)
    assert raised.value.exit_code == 78


def test_an_access_list_ends_the_start(cluster: Broker, topic: str, secret: Path) -> None:
    with pytest.raises(ConfigError, match=r"unauthorized.*access list"):
        values(source(cluster, "SASL", topic, named("PLAIN", secret, username="nobody")))


def test_certificates_of_a_stranger_end_the_start(
    cluster: Broker, topic: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 3.0)
    with pytest.raises(ConfigError, match=r"its certificate is not trusted.*ca_file"):
        values(source(cluster, "TLS", topic, {"protocol": "SSL", "ca_file": str(certificates.stranger)}))


def test_a_missing_certificate_of_our_own_ends_the_start(
    cluster: Broker, topic: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 3.0)
    with pytest.raises(ConfigError, match="unauthorized"):
        values(source(cluster, "MUTUAL", topic, {"protocol": "SSL", "ca_file": str(certificates.ca)}))


def test_being_turned_away_later_is_tried_again(
    cluster: Broker, topic: str, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "ANSWER_LIMIT", 6.0)
    opened = source(cluster, "SASL", topic, named("SCRAM-SHA-512", secret))
    assert values(opened) == [b"seen"]
    secret.write_text("changed meanwhile")
    with pytest.raises(UnauthorizedError, match=r"^unauthorized"):
        opened.start({})
    secret.write_text(CANARY)
    assert values(opened) == [b"seen"]


# --- secrets ------------------------------------------------------------------------------------------------------


def test_no_secret_is_shown_anywhere(
    cluster: Broker,
    topic: str,
    secret: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kafka_source, "CLIENT_LOGS_EVERY", 0.0)
    with caplog.at_level(logging.DEBUG), capture_logs() as ours:
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            opened = source(cluster, "SASL", topic, named(mechanism, secret))
            assert values(opened) == [b"seen"]
            assert CANARY not in repr(vars(opened)) + repr(client_settings(opened._config))
    assert caplog.records
    assert CANARY not in caplog.text + str(ours) + "".join(capfd.readouterr())


def test_a_dead_letter_topic_that_we_may_not_write_to_is_told(cluster: Broker, topic: str, secret: Path) -> None:
    settings = {
        "bootstrap_servers": [cluster.listeners["SASL"]],
        "security": named("PLAIN", secret, username="nobody"),
    }
    letters = KafkaLetters(KafkaConfig.model_validate(settings), topic)
    letter = DeadLetter(Position(topic, 0, 0), RejectReason.NOT_JSON, "", None, b"x", datetime.now(UTC))
    with pytest.raises(SourceError, match=f"not copied to topic {topic}: .*allow writing"):
        letters.publish([letter])
