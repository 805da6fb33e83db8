"""Whatever arrives at the ports, nothing ends in a 500, and the server goes on answering.

FUZZ_CASES says how many cases each test tries (default 150; `FUZZ_CASES=20000` takes its time).
"""

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.serve.oip import open_inference_pb2 as pb
from daemon.serve.openapi import OPERATIONS
from tests.artefacts import MODEL
from tests.serving import PATIENCE, Running, running, with_champion

CASES = int(os.environ.get("FUZZ_CASES", "150"))
fuzz = settings(max_examples=CASES, derandomize="FUZZ_CASES" not in os.environ)

INFER = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzzed")
    with_champion(folder)
    feedback = {"sink": "file", "path": str(folder / "feedback")}
    with running(folder, grpc_port=0, max_body="64KiB", max_texts=8, request_timeout="2s", feedback=feedback) as server:
        yield server
        with httpx.Client(base_url=server.url) as client:
            assert client.post("/predict", json={"text": "good"}).status_code == 200
            assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        log = server.log.read_text()
        assert "Traceback" not in log and '"level": "error"' not in log, log[-3000:]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


# --- requests that are HTTP ---

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["good", "text", "BYTES", -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = ["text", "texts", "id", "label", "labels", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data",
          "binary_data", "binary_data_size", "binary_data_output", "classification"]  # fmt: skip
objects = st.dictionaries(
    st.sampled_from(fields), values | st.lists(st.dictionaries(st.sampled_from(fields), values)), max_size=6
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    """Nearly an inference: one thing or another may be wrong."""
    tensor = {**INFER["inputs"][0], **draw(st.dictionaries(st.sampled_from(fields), values, max_size=2))}
    tensor["parameters"] = draw(st.none() | st.fixed_dictionaries({"binary_data_size": st.integers(-5, 100)}))
    return {"inputs": [tensor], **draw(st.dictionaries(st.sampled_from(fields), values, max_size=2))}


bodies = st.binary(max_size=200) | st.builds(
    lambda value, tail: json.dumps(value).encode() + tail,
    objects | tensors() | values,
    st.sampled_from([b"", b"\x04\0\0\0good", b"\xff" * 9]),
)
paths = st.sampled_from([operation.path for operation in OPERATIONS]) | st.builds(
    "/{}".format, st.text("abc/%{}.?#:é\0 ", max_size=12)
)
names = st.sampled_from([MODEL, "1", "2", "", "..", "%00", "é", "1e9", "9" * 400]) | st.text("ab1/%.é", max_size=6)
headers = st.dictionaries(
    st.sampled_from(["Inference-Header-Content-Length", "Content-Type", "X-Request-Id", "X-Request-Timeout-Ms", "Content-Encoding",
                     "Accept", "Expect", "Authorization", "Host"]),
    st.sampled_from(["", "0", "1", "-1", "17", "9" * 20, "application/json", "gzip", "100-continue", "\x7f", "a b", "\xc3\xa9"]),
    max_size=3,
)  # fmt: skip


@fuzz
@given(
    method=st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    path=paths,
    name=names,
    version=names,
    body=bodies,
    sent=headers,
)
def test_no_request_makes_a_500(
    client: httpx.Client, method: str, path: str, name: str, version: str, body: bytes, sent: dict[str, str]
) -> None:
    path = path.replace("{name}", name).replace("{version}", version)
    coded = {key: value.encode("latin-1") for key, value in sent.items()}
    try:
        answer = client.request(method, path, content=body, headers=coded)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError):
        return  # the client refuses to send it
    assert answer.status_code in {200, 307, 400, 404, 405, 408, 413, 415}
    if answer.status_code >= 400 and method != "HEAD" and answer.headers["content-type"] == "application/json":
        assert set(answer.json()) == {"error"}


# --- bytes that are hardly HTTP ---

GOOD = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{"text": "good"}'
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS where none is spoken
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(40),
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET  HTTP/1.1\r\n\r\n",
    b"GET \x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    b"GET /livez HTTP/1.1\r\nX: " + b"y" * 1_000_000,
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;ext=1\r\na\r\n" * 100_000,
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200_000,
    b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 16\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n\r\n" + bytes(50),
    GOOD * 50,
]  # fmt: skip


def answer_to(server: Running, sent: bytes, *, patience: float) -> bytes:
    """Everything that comes back until the server closes, or nothing has come for `patience` seconds."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=PATIENCE) as connection:
        answer = b""
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(sent)
            connection.settimeout(patience)
            while piece := connection.recv(65536):
                answer += piece
        return answer


def assert_no_fault(answer: bytes) -> None:
    codes = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert not [code for code in codes if code.startswith(b"5")], answer[:500]


@pytest.mark.parametrize("sent", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_makes_no_500(server: Running, sent: bytes) -> None:
    answer = answer_to(server, sent, patience=0.5)
    assert_no_fault(answer)
    if sent == GOOD * 50:
        assert answer.count(b"HTTP/1.1 200") == 50


def test_mutated_requests_make_no_500(server: Running) -> None:
    chance, answered = random.Random(11), 0
    for _ in range(CASES):
        mutant = bytearray(chance.choice([GOOD, GOOD, *(each for each in GARBAGE if len(each) < 500)]))
        for _ in range(chance.randrange(1, 5)):
            where = chance.randrange(len(mutant))
            match chance.randrange(3):
                case 0:
                    mutant[where] = chance.randrange(256)
                case 1:
                    del mutant[where : where + chance.randrange(1, 20)]
                case 2:
                    mutant[where:where] = mutant[where : where + 30]
            mutant = mutant or bytearray(b"x")
        answer = answer_to(server, bytes(mutant), patience=0.05)
        assert_no_fault(answer)
        answered += bool(answer)
    assert answered > CASES / 3


def test_slow_heads_are_closed_and_hold_nobody_up(server: Running, client: httpx.Client) -> None:
    url = httpx.URL(server.url)
    slow = [socket.create_connection((url.host, url.port or 80), timeout=PATIENCE) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        deadline = time.monotonic() + 3.5
        while time.monotonic() < deadline:
            for connection in slow[:50]:
                with suppress(ConnectionError):
                    connection.sendall(b"y")
            assert client.post("/predict", json={"text": "good"}).status_code == 200
            time.sleep(0.1)
        for connection in slow:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    finally:
        for connection in slow:
            connection.close()


def test_an_endless_head_or_trailer_is_cut(server: Running) -> None:
    heads = (
        b"GET /livez HTTP/1.1\r\nX: ",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    )
    url = httpx.URL(server.url)
    for head in heads:
        with socket.create_connection((url.host, url.port or 80), timeout=PATIENCE) as endless:
            endless.sendall(head)
            sent = 0
            with pytest.raises(ConnectionError):
                while sent < 50_000_000:
                    endless.sendall(b"y" * 65536)
                    sent += 65536
            assert sent < 10_000_000


# --- gRPC ---

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
CALLS = [
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelInfer",
    "ModelInfer",
    "Nothing",
]


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def called(channel: grpc.Channel, call: str, message: bytes) -> None:
    """Sends any bytes as that call's message; it may be answered or refused, but never be our fault."""
    ask = channel.unary_unary(f"/inference.GRPCInferenceService/{call}")
    try:
        ask(message, timeout=PATIENCE)
    except grpc.RpcError as error:
        assert error.code() in CODES, (error.code(), error.details())


@fuzz
@given(call=st.sampled_from(CALLS), message=st.binary(max_size=120))
def test_any_bytes_over_grpc(channel: grpc.Channel, call: str, message: bytes) -> None:
    called(channel, call, message)


elements = st.text(max_size=8).map(str.encode) | st.binary(max_size=8)


@fuzz
@given(
    model=st.sampled_from([MODEL, MODEL, MODEL, "other", ""]),
    version=st.sampled_from(["", "", "1", "9", "x", "9" * 300]),
    id=st.sampled_from(["", "a", "a b", "é", "\n"]),
    names=st.lists(st.sampled_from(["text", "label", ""]), max_size=2),
    shape=st.lists(st.integers(-2, 3), max_size=3),
    datatype=st.sampled_from(["BYTES", "BYTES", "FP32", ""]),
    contents=st.none() | st.lists(elements, max_size=3),
    raw=st.lists(st.binary(max_size=16) | elements.map(lambda each: len(each).to_bytes(4, "little") + each), max_size=2),
    outputs=st.lists(st.sampled_from(["label", "confidence", "probabilities", "x", ""]), max_size=3),
)  # fmt: skip
def test_any_inference_over_grpc(
    channel: grpc.Channel,
    model: str,
    version: str,
    id: str,
    names: list[str],
    shape: list[int],
    datatype: str,
    contents: list[bytes] | None,
    raw: list[bytes],
    outputs: list[str],
) -> None:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id, raw_input_contents=raw)
    for name in names or ["text"]:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape or [len(contents or raw)])
        if contents is not None:
            tensor.contents.bytes_contents.extend(contents)
    for output in outputs:
        request.outputs.add(name=output)
    called(channel, "ModelInfer", request.SerializeToString())


def test_a_port_full_of_garbage_is_still_a_grpc_port(server: Running, channel: grpc.Channel) -> None:
    host, _, port = server.grpc.rpartition(":")
    for sent in (*GARBAGE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\xff\xff\xff" * 50):
        with socket.create_connection((host, int(port)), timeout=1.0) as connection, suppress(ConnectionError):
            connection.sendall(sent)
    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    assert pb.ServerLiveResponse.FromString(live(b"", timeout=PATIENCE)).live
