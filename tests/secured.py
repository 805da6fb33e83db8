"""An Apache Kafka that lets nobody in without a name: SASL and TLS listeners, users, certificates, access lists."""

import base64
import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from daemon.demo.brokers import Broker, apache_kafka

CANARY = "canary-4f1c9e7b"  # the password: it must come up in no log line, error or repr
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule"
OAUTH_LOGIN = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"


@dataclass(frozen=True)
class Certificates:
    """PEM files. The brokers' certificate is for 127.0.0.1; `stranger` signed none of them."""

    ca: Path
    stranger: Path
    client: Path
    client_key: Path
    broker: Path


@contextmanager
def secured_kafka(certificates: Certificates) -> Iterator[Broker]:
    """Users "reader" (may do everything) and "nobody" (may do nothing), both with CANARY as their password."""
    properties = {
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.broker),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:reader;User:CN=client",
    }
    for listener in ("sasl", "saslssl"):
        prefix = f"listener.name.{listener}"
        users = f'user_reader="{CANARY}" user_nobody="{CANARY}"'
        properties |= {
            f"{prefix}.plain.sasl.jaas.config": f"{PLAIN_LOGIN} required {users};",
            f"{prefix}.scram-sha-256.sasl.jaas.config": f"{SCRAM_LOGIN} required;",
            f"{prefix}.scram-sha-512.sasl.jaas.config": f"{SCRAM_LOGIN} required;",
            f"{prefix}.oauthbearer.sasl.jaas.config": f'{OAUTH_LOGIN} required unsecuredLoginStringClaim_sub="broker";',
        }
    listeners = {"SASL": "SASL_PLAINTEXT", "SASLSSL": "SASL_SSL", "TLS": "SSL", "MUTUAL": "SSL"}
    users = [
        f"{mechanism}=[name={name},password={CANARY}]"
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for name in ("reader", "nobody")
    ]
    arguments = [word for user in users for word in ("--add-scram", user)]
    with apache_kafka(properties, listeners=listeners, format_arguments=arguments) as broker:
        yield broker


def unsecured_token(subject: str, *, seconds: float = 600.0) -> str:
    """A token that nobody signed; the brokers' default validator takes it."""
    now = time.time()
    parts: list[dict[str, Any]] = [{"alg": "none"}, {"sub": subject, "iat": now, "exp": now + seconds}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def make_certificates(folder: Path) -> Certificates:
    """Good for an hour."""
    ca, ca_key = _signed("ca", None)
    stranger, _ = _signed("stranger", None)
    broker, broker_key = _signed("broker", (ca, ca_key))
    client, client_key = _signed("client", (ca, ca_key))
    return Certificates(
        ca=_written(folder / "ca.pem", _pem(ca)),
        stranger=_written(folder / "stranger.pem", _pem(stranger)),
        client=_written(folder / "client.pem", _pem(client)),
        client_key=_written(folder / "client.key", _key_pem(client_key)),
        broker=_written(folder / "broker.pem", _key_pem(broker_key) + _pem(broker) + _pem(ca)),
    )


Issuer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _signed(name: str, issuer: Issuer | None) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
