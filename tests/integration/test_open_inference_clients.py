"""tritonclient as it comes from PyPI, REST and gRPC, against the real server: nothing about it is adapted."""

import queue
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import OrtScorer
from tests.artefacts import MODEL
from tests.serving import Running, running, with_champion

TEXTS = ["good", "on time and very good", "bäd 💥 service"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def registry(folder: Path) -> FileRegistry:
    return with_champion(folder, 1, 2)


@pytest.fixture(scope="module")
def server(folder: Path, registry: FileRegistry) -> Iterator[Running]:
    with running(folder, grpc_port=0, max_texts=8, max_body="64KiB") as server:
        yield server


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["rest", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[tuple[ModuleType, Any]]:
    vendor: ModuleType = request.param
    address = server.grpc if vendor is tritonclient.grpc else server.host
    with vendor.InferenceServerClient(address) as client:
        yield vendor, client


def text_input(vendor: ModuleType, texts: list[str], *, shape: list[int] | None = None, **how: Any) -> Any:
    tensor = vendor.InferInput("text", shape or [len(texts)], "BYTES")
    rows = np.array([text.encode() for text in texts], dtype=np.object_).reshape(shape or [len(texts)])
    return tensor.set_data_from_numpy(rows, **how)


def assert_answers(answer: Any, registry: FileRegistry, number: int, texts: list[str]) -> None:
    expected = OrtScorer(registry, threads=1).predict(registry.version(MODEL, number), texts)
    assert [label.decode() if isinstance(label, bytes) else label for label in answer.as_numpy("label")] == [
        prediction.label for prediction in expected
    ]
    np.testing.assert_allclose(answer.as_numpy("confidence"), [each.confidence for each in expected], atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), [each.probabilities for each in expected], atol=1e-5)


def test_health_and_metadata(client: tuple[ModuleType, Any]) -> None:
    vendor, ask = client
    as_json = {"as_json": True} if vendor is tritonclient.grpc else {}
    assert ask.is_server_live() and ask.is_server_ready() and ask.is_model_ready(MODEL)
    assert ask.is_model_ready(MODEL, "1")
    assert ask.get_server_metadata(**as_json)["name"] == "relearnd"
    model = ask.get_model_metadata(MODEL, **as_json)
    assert (model["versions"], [each["name"] for each in model["outputs"]]) == (
        ["1", "2"],
        ["label", "confidence", "probabilities"],
    )
    assert ask.get_model_metadata(MODEL, "1", **as_json)["versions"] == ["1"]


@pytest.mark.parametrize("shape", [None, [3, 1]])
def test_an_inference_with_the_client_s_own_defaults(
    client: tuple[ModuleType, Any], registry: FileRegistry, shape: list[int] | None
) -> None:
    vendor, ask = client
    answer = ask.infer(MODEL, [text_input(vendor, TEXTS, shape=shape)], request_id="order-7")
    assert_answers(answer, registry, 2, TEXTS)
    response = answer.get_response() if vendor is tritonclient.http else answer.get_response(as_json=True)
    assert (response["model_version"], response["id"]) == ("2", "order-7")


def test_a_version_is_pinned_and_outputs_chosen(client: tuple[ModuleType, Any], registry: FileRegistry) -> None:
    vendor, ask = client
    outputs = [vendor.InferRequestedOutput(name) for name in ("probabilities", "label", "confidence")]
    answer = ask.infer(MODEL, [text_input(vendor, TEXTS)], model_version="1", outputs=outputs)
    assert_answers(answer, registry, 1, TEXTS)
    only = ask.infer(MODEL, [text_input(vendor, TEXTS)], outputs=outputs[1:2])
    assert only.as_numpy("probabilities") is None


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_rest_in_binary_and_in_json_says_the_same(
    server: Running, registry: FileRegistry, binary_in: bool, binary_out: bool
) -> None:
    with tritonclient.http.InferenceServerClient(server.host) as ask:
        outputs = [
            tritonclient.http.InferRequestedOutput(name, binary_data=binary_out)
            for name in ("label", "confidence", "probabilities")
        ]
        asked = text_input(tritonclient.http, TEXTS, binary_data=binary_in)
        assert_answers(ask.infer(MODEL, [asked], outputs=outputs), registry, 2, TEXTS)


def test_many_at_once(client: tuple[ModuleType, Any], registry: FileRegistry, server: Running) -> None:
    vendor, ask = client
    if vendor is tritonclient.http:
        with vendor.InferenceServerClient(server.host, concurrency=8) as many:
            waiting = [many.async_infer(MODEL, [text_input(vendor, TEXTS)]) for _ in range(64)]
            answers = [each.get_result() for each in waiting]
    else:
        arrived: queue.Queue[Any] = queue.Queue()
        for _ in range(64):
            ask.async_infer(MODEL, [text_input(vendor, TEXTS)], lambda result, error: arrived.put(error or result))
        answers = [arrived.get(timeout=20) for _ in range(64)]
    assert_answers(answers[0], registry, 2, TEXTS)
    assert all((each.as_numpy("label") == answers[0].as_numpy("label")).all() for each in answers)


@pytest.mark.parametrize(
    ("change", "rest", "grpc", "says"),
    [
        ({"model_name": "other"}, "404", "NOT_FOUND", "serves 'tweets'"),
        ({"model_version": "9"}, "404", "NOT_FOUND", "version 9 is not loaded here; loaded are [1, 2]"),
        ({"model_version": "zero"}, "404", "NOT_FOUND", "a version is a number"),
        ({"texts": ["good"] * 9}, "400", "INVALID_ARGUMENT", "send at most 8"),
        ({"texts": ["good", " "]}, "400", "INVALID_ARGUMENT", "text 1 is empty"),
        ({"request_id": "a b"}, "400", "INVALID_ARGUMENT", "an id is"),
        ({"texts": ["x" * 200_000]}, "413", "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_refusals_say_what_to_do(
    client: tuple[ModuleType, Any], change: dict[str, Any], rest: str, grpc: str, says: str
) -> None:
    vendor, ask = client
    change = dict(change)
    texts = change.pop("texts", ["good"])
    with pytest.raises(InferenceServerException) as refused:
        ask.infer(change.pop("model_name", MODEL), [text_input(vendor, texts)], **change)
    assert refused.value.status() == (rest if vendor is tritonclient.http else f"StatusCode.{grpc}")
    assert says in refused.value.message()


def test_a_deadline_that_cannot_be_met_is_the_client_s_error(server: Running) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as ask:
        with pytest.raises(InferenceServerException) as late:
            ask.infer(MODEL, [text_input(tritonclient.grpc, ["good"])], client_timeout=1e-6)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_grpc_calls_are_counted(server: Running) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as ask:
        ask.infer(MODEL, [text_input(tritonclient.grpc, ["good"])])
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'relearnd_requests_total{code="OK",endpoint="grpc ModelInfer",version="2"}' in metrics
