"""Who may ask the server: keys, TLS and client certificates on real connections, and what it refuses to start with."""

import hashlib
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import tritonclient.grpc
import tritonclient.http
import trustme
from tritonclient.utils import InferenceServerException

from daemon.config import TlsConfig, load_config
from daemon.core.errors import ConfigError
from daemon.serve.auth import Certificates, Reread
from daemon.serve.grpc_api import OPEN as OPEN_CALLS
from daemon.serve.openapi import OPERATIONS
from tests.artefacts import MODEL
from tests.serving import PATIENCE, Running, running, settings, started, with_champion

LOOKS_EVERY = 1.2  # seconds after which a changed file has been seen
KEY, OTHER_KEY = "key-of-the-first-client", "key-of-the-second-client"


def keys_file(folder: Path, *lines: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text("# two clients\n" + "".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server that knows KEY as it is and OTHER_KEY by its hash."""
    folder = tmp_path_factory.mktemp("guarded")
    with_champion(folder)
    path = keys_file(folder, KEY, f"sha256:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}")
    with running(folder, grpc_port=0, api_keys_file=str(path)) as server:
        yield server, path


# --- keys ---


def test_without_a_key_nothing_answers_but_what_load_balancers_ask(guarded: tuple[Running, Path]) -> None:
    server, _ = guarded
    open_paths = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
    routes = {operation.path.format(name=MODEL, version="1") for operation in OPERATIONS}
    assert routes > open_paths
    elsewhere = {"/", "/nowhere", "/livez/", "//livez", "/livez/../metrics", "/LIVEZ", "/metrics/", "/docs", "/%6Cive"}
    refused = {}
    with httpx.Client(base_url=server.url) as client:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND"):
            for path in routes | elsewhere:
                answer = client.request(method, path, content=b"{}")
                refused[method, path] = answer.status_code
                for headers in (
                    bearer("wrong-but-long-enough"),
                    {"Authorization": KEY},
                    {"Authorization": f"Basic {KEY}"},
                ):
                    assert client.request(method, path, headers=headers).status_code == answer.status_code
    assert {code for (_, path), code in refused.items() if path not in open_paths} == {401}
    assert {path for (method, path), code in refused.items() if code == 200 and method == "GET"} == open_paths


def test_each_key_opens_everything(guarded: tuple[Running, Path]) -> None:
    server, _ = guarded
    with httpx.Client(base_url=server.url) as client:
        for key in (KEY, OTHER_KEY):
            assert client.post("/predict", json={"text": "good"}, headers=bearer(key)).status_code == 200
            assert client.get("/metrics", headers=bearer(key)).status_code == 200
        document = client.get("/openapi.json", headers=bearer(KEY)).json()
    assert document["paths"]["/predict"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/livez"]["get"]


def test_grpc_asks_for_the_same_keys(guarded: tuple[Running, Path]) -> None:
    server, _ = guarded
    tensor = tritonclient.grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"good"], dtype=np.object_))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as ask:
        guarded_calls: list[Callable[[dict[str, str] | None], Any]] = [
            lambda headers: ask.is_model_ready(MODEL, headers=headers),
            lambda headers: ask.get_server_metadata(headers=headers),
            lambda headers: ask.get_model_metadata(MODEL, headers=headers),
            lambda headers: ask.infer(MODEL, [tensor], headers=headers),
            lambda headers: ask.get_model_repository_index(headers=headers),
        ]
        assert ask.is_server_live() and ask.is_server_ready()
        assert {"ServerLive", "ServerReady"} == OPEN_CALLS
        for call in guarded_calls:
            for headers in (None, {"authorization": "Bearer wrong-but-long-enough"}):
                with pytest.raises(InferenceServerException) as refused:
                    call(headers)
                assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        for call in guarded_calls[:-1]:
            assert call({"authorization": f"Bearer {KEY}"})
    with tritonclient.http.InferenceServerClient(server.host) as ask:
        assert ask.get_model_metadata(MODEL, headers=bearer(KEY))["name"] == MODEL


def test_keys_are_rotated_without_a_restart_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    with_champion(tmp_path)
    path = keys_file(tmp_path, KEY)
    with running(tmp_path, api_keys_file=str(path)) as server, httpx.Client(base_url=server.url) as client:

        def code(key: str) -> int:
            return client.get("/metrics", headers=bearer(key)).status_code

        def becomes(key: str, wanted: int) -> None:
            deadline = time.monotonic() + PATIENCE
            while code(key) != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.05)

        assert (code(KEY), code(OTHER_KEY)) == (200, 401)
        keys_file(tmp_path, KEY, OTHER_KEY)
        becomes(OTHER_KEY, 200)
        assert code(KEY) == 200
        keys_file(tmp_path, OTHER_KEY)
        becomes(KEY, 401)
        path.write_text("")
        time.sleep(LOOKS_EVERY)
        assert code(OTHER_KEY) == 200
        assert b"api_keys_not_read" in server.log.read_bytes()
        assert KEY.encode() not in server.log.read_bytes()


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def written(folder: Path, authority: trustme.CA, name: str, **identity: Any) -> dict[str, str]:
    issued = authority.issue_cert(name, **identity)
    files = {"cert": folder / f"{name}.pem", "key": folder / f"{name}.key", "ca": folder / "ca.pem"}
    files["cert"].write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    files["key"].write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(files["ca"]))
    return {name: str(file) for name, file in files.items()}


def test_with_a_client_ca_both_ports_speak_to_nobody_without_a_certificate(
    tmp_path: Path, authority: trustme.CA
) -> None:
    with_champion(tmp_path)
    ours = written(tmp_path, authority, "localhost")
    client = written(tmp_path, authority, "client")
    stranger_folder = tmp_path / "stranger"
    stranger_folder.mkdir()
    stranger = written(stranger_folder, trustme.CA(), "stranger")
    tls = {"cert": ours["cert"], "key": ours["key"], "client_ca": ours["ca"]}
    trusted = ssl.create_default_context(cafile=ours["ca"])
    trusted.load_cert_chain(client["cert"], client["key"])
    with running(tmp_path, verify=trusted, host="localhost", grpc_port=0, tls=tls) as server:
        assert server.url.startswith("https://")
        assert httpx.post(f"{server.url}/predict", json={"text": "good"}, verify=trusted).status_code == 200
        without = ssl.create_default_context(cafile=ours["ca"])
        wrong = ssl.create_default_context(cafile=ours["ca"])
        wrong.load_cert_chain(stranger["cert"], stranger["key"])
        for context in (without, wrong):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{server.url}/livez", verify=context)
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/livez")
        assert grpc_live(server, ours["ca"], client)
        for certificate in (None, stranger):
            with pytest.raises(InferenceServerException, match=r"UNAVAILABLE|connect"):
                grpc_live(server, ours["ca"], certificate)


def test_renewed_certificates_and_authorities_count_for_new_connections_and_broken_ones_change_nothing(
    tmp_path: Path, authority: trustme.CA
) -> None:
    with_champion(tmp_path)
    before, after = tmp_path / "before", tmp_path / "after"
    successor = trustme.CA()
    for folder, signs in ((before, authority), (after, successor)):
        folder.mkdir()
        written(folder, signs, "localhost")
        written(folder, signs, "client")
    used = {name: str(tmp_path / name) for name in ("cert", "key", "client_ca")}

    def use(folder: Path) -> None:
        for name, file in (("cert", "localhost.pem"), ("key", "localhost.key"), ("client_ca", "ca.pem")):
            shutil.copy(folder / file, used[name])

    def speaks(folder: Path) -> bool:
        """On both ports, trusting only what is in `folder`; to neither, otherwise."""
        client = {"cert": str(folder / "client.pem"), "key": str(folder / "client.key")}
        trusted = ssl.create_default_context(cafile=folder / "ca.pem")
        trusted.load_cert_chain(client["cert"], client["key"])
        try:
            by_http = httpx.get(f"{server.url}/livez", verify=trusted).status_code == 200
        except httpx.TransportError:
            by_http = False
        try:
            by_grpc = grpc_live(server, str(folder / "ca.pem"), client)
        except InferenceServerException:
            by_grpc = False
        assert by_http == by_grpc
        return by_http

    use(before)
    trusted = ssl.create_default_context(cafile=before / "ca.pem")
    trusted.load_cert_chain(before / "client.pem", before / "client.key")
    with running(tmp_path, verify=trusted, host="localhost", grpc_port=0, tls=used) as server:
        assert (speaks(before), speaks(after)) == (True, False)
        Path(used["key"]).write_text("torn")
        time.sleep(LOOKS_EVERY)
        assert (speaks(before), speaks(after)) == (True, False)
        use(after)
        time.sleep(LOOKS_EVERY)
        assert (speaks(before), speaks(after)) == (False, True)
        assert b"certificates_not_read" in server.log.read_bytes()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_from_before_lets_nobody_in_whose_authority_is_trusted_no_more(
    newest: ssl.TLSVersion, tmp_path: Path, authority: trustme.CA
) -> None:
    successor, seconds = trustme.CA(), [0.0]
    used, certificate = written(tmp_path, authority, "localhost"), authority.issue_cert("client")
    tls = TlsConfig(cert=Path(used["cert"]), key=Path(used["key"]), client_ca=Path(used["ca"]))
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=used["ca"])
    accepting.load_cert_chain(used["cert"], used["key"])
    accepting.verify_mode = ssl.CERT_REQUIRED
    Certificates(tls, monotonic=lambda: seconds[0]).guard(accepting)
    asking = ssl.create_default_context()
    asking.maximum_version = newest
    certificate.configure_cert(asking)
    for each in (authority, successor):
        each.configure_trust(asking)
    session = shaken_hands(accepting, asking)
    assert shaken_hands(accepting, asking, session)
    written(tmp_path, successor, "localhost")
    seconds[0] += LOOKS_EVERY
    for shown in (session, None):
        with pytest.raises(ssl.SSLError):
            shaken_hands(accepting, asking, shown)


def shaken_hands(accepting: ssl.SSLContext, asking: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Any:
    """A connection; what the client may take it up again with. Raises SSLError."""
    here, there = socket.socketpair()
    here.settimeout(PATIENCE)
    there.settimeout(PATIENCE)

    def accept() -> None:
        with suppress(OSError), accepting.wrap_socket(there, server_side=True) as connection:
            connection.sendall(b"x")

    with ThreadPoolExecutor() as pool:
        pool.submit(accept)
        with asking.wrap_socket(here, server_hostname="localhost", session=session) as connection:
            if connection.recv(1) != b"x":
                raise ssl.SSLError("the connection ended")
            return connection.session


def test_what_could_not_be_read_is_tried_again_and_said_once(tmp_path: Path) -> None:
    """Whom a file belongs to, or how many files are open, does not show in the file."""

    def read() -> str:
        if reason:
            raise ConfigError(reason[0])
        return path.read_text()

    path, seconds, reason = tmp_path / "keys", [0.0], list[str]()
    path.write_text("before")
    keys = Reread("API keys", [path], read, lambda: seconds[0])
    path.write_text("renewed")
    reason.append("Permission denied")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            seconds[0] += LOOKS_EVERY
            assert keys.now() == "before"
        reason.clear()
        seconds[0] += LOOKS_EVERY
        assert keys.now() == "renewed"
    assert [line["action"] for line in logs] == ["api_keys_not_read", "api_keys_read"]


def grpc_live(server: Running, ca: str, certificate: dict[str, str] | None) -> bool:
    shown = {"private_key": certificate["key"], "certificate_chain": certificate["cert"]} if certificate else {}
    client = tritonclient.grpc.InferenceServerClient(server.grpc, ssl=True, root_certificates=ca, **shown)
    with client:
        return bool(client.is_server_live(client_timeout=5))


# --- what it does not start with ---


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ({"tls": {"cert": "there.pem", "key": "missing.key"}}, "server.tls.key: missing.key cannot be read"),
        ({"tls": {"cert": "there.pem", "key": "there.pem"}}, "no certificate chain and its unencrypted key"),
        ({"api_keys_file": "missing"}, "server.api_keys_file: missing cannot be read"),
        ({"api_keys_file": "readable"}, "has mode 0644; chmod 600 it"),
        ({"api_keys_file": "short"}, "at least 16 ASCII characters"),
        ({"api_keys_file": "none"}, "has no key"),
    ],
)
def test_it_does_not_start_half_guarded(server: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "there.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    for name, line, mode in (("readable", KEY, 0o644), ("short", "secret", 0o600), ("none", "# nobody", 0o600)):
        (tmp_path / name).write_text(f"{line}\n")
        (tmp_path / name).chmod(mode)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        process = started(tmp_path, settings(tmp_path, **server))
        assert process.wait(PATIENCE) == 78
    finally:
        os.chdir(before)
    assert says in (tmp_path / "log").read_text()


@pytest.mark.parametrize("tls", [{"cert": "a.pem"}, {"key": "a.key"}, {"client_ca": "ca.pem"}])
def test_a_config_with_half_of_tls_is_refused(tls: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"server:\n  tls: {tls}\n")
    with pytest.raises(ConfigError, match=r"belong together|needs cert and key") as refused:
        load_config(config)
    assert refused.value.exit_code == 78


@pytest.mark.parametrize(
    ("server", "missing", "extra"),
    [({"grpc_port": 0}, "grpc", "relearnd[grpc]"), ({"feedback": {"sink": "kafka"}}, "kafka", "relearnd[feedback]")],
)
def test_what_is_not_installed_is_named_with_what_brings_it(
    server: dict[str, Any], missing: str, extra: str, tmp_path: Path
) -> None:
    process = started(tmp_path, settings(tmp_path, **server), first=f"import sys; sys.modules['{missing}'] = None")
    assert process.wait(PATIENCE) == 78
    assert extra in (tmp_path / "log").read_text()


def test_a_grpc_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = started(tmp_path, settings(tmp_path, grpc_port=port))
        assert process.wait(PATIENCE) == 69
    assert f"cannot listen on 127.0.0.1:{port}" in (tmp_path / "log").read_text()


def test_an_address_that_others_reach_without_keys_is_warned_of(tmp_path: Path) -> None:
    with_champion(tmp_path)
    with running(tmp_path, host="0.0.0.0") as server:
        assert "open_to_others" in server.log.read_text()
    with running(tmp_path, host="0.0.0.0", api_keys_file=str(keys_file(tmp_path, KEY))) as server:
        assert "open_to_others" not in server.log.read_text()
