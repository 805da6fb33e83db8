"""The OpenAPI document is valid, describes every route and nothing else, and real answers keep what it promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from grpc_tools import protoc
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route

from daemon.serve.openapi import OPERATIONS
from tests.artefacts import MODEL
from tests.integration.test_serving_http import Bench
from tests.serving import Running, running, with_champion

INFER = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}
LONG = {"inputs": [{**INFER["inputs"][0], "data": ["good " * 500]}]}
V2 = f"/v2/models/{MODEL}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("described")
    with_champion(folder)
    feedback = {"sink": "file", "path": str(folder / "feedback")}
    with running(folder, max_texts=4, max_body="4kB", feedback=feedback) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return described


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_it_describes_every_route_of_the_application_and_no_other(document: dict[str, Any]) -> None:
    routes = {
        (method, route.path)
        for route in applications_routes(Bench().app)
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert len(routes) == len(OPERATIONS) > 12
    assert described == routes


def applications_routes(app: Any) -> list[Route]:
    """Those of the Starlette application, however it is wrapped."""
    while not isinstance(app, Starlette):
        app = next(inner for name in ("_app", "_rest", "app") if (inner := getattr(app, name, None)) is not None)
    assert all(isinstance(route, Route) for route in app.routes)
    return [route for route in app.routes if isinstance(route, Route)]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/predict", {"text": "good"}, 200),
        ("POST", "/predict", {"texts": ["good", "bad"], "id": "a"}, 200),
        ("POST", "/predict", {"text": "good " * 500}, 200),
        ("POST", "/predict", {"texts": ["good", "bad " * 500]}, 200),
        ("POST", f"{V2}/infer", LONG, 200),
        ("POST", "/predict", {"texts": []}, 400),
        ("POST", "/predict", {"text": "x" * 5000}, 413),
        ("POST", "/feedback", {"id": "a-0", "label": "up"}, 200),
        ("POST", "/feedback", {"labels": [{"id": "a-0", "label": "up"}, {"id": "a-1", "label": "down"}]}, 200),
        ("POST", "/feedback", {"id": "a-0"}, 400),
        ("POST", f"{V2}/infer", {**INFER, "outputs": [{"name": "probabilities"}, {"name": "label"}]}, 200),
        ("POST", f"{V2}/versions/1/infer", INFER, 200),
        ("POST", f"{V2}/versions/9/infer", INFER, 404),
        ("POST", "/v2/models/other/infer", INFER, 404),
        ("GET", "/v2", None, 200),
        ("GET", V2, None, 200),
        ("GET", f"{V2}/versions/1", None, 200),
        ("GET", f"{V2}/versions/9", None, 404),
        ("GET", f"{V2}/ready", None, 200),
        ("GET", f"{V2}/versions/1/ready", None, 200),
        ("GET", f"{V2}/versions/9/ready", None, 404),
        ("GET", "/v2/health/live", None, 200),
        ("GET", "/v2/health/ready", None, 200),
        ("GET", "/livez", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/metrics", None, 200),
        ("GET", "/status", None, 200),
        ("GET", "/openapi.json", None, 200),
    ],
)
def test_real_answers_are_as_described(
    server: Running, document: dict[str, Any], method: str, path: str, body: Any, code: int
) -> None:
    operation = document["paths"][template(document, path)][method.lower()]
    answer = httpx.request(method, server.url + path, json=body)
    assert answer.status_code == code
    described = operation["responses"][str(code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][kind].get("schema")
    if schema is not None:
        check(document, schema, answer.json())
    if code == 200 and body is not None:
        check(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
    assert set(described["headers"]) <= {name.title() for name in answer.headers}


def template(document: dict[str, Any], path: str) -> str:
    parts = path.replace(f"/v2/models/{MODEL}", "/v2/models/{name}").replace("/v2/models/other", "/v2/models/{name}")
    for number in ("1", "9"):
        parts = parts.replace(f"/versions/{number}", "/versions/{version}")
    assert parts in document["paths"]
    return parts


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_every_example_of_what_is_not_an_answer_fails(document: dict[str, Any]) -> None:
    """The schemas are strict enough to notice."""
    predicted = {"$ref": "#/components/schemas/Predicted"}
    for wrong in ({}, {"id": "a", "model": "m", "version": "1"}, {"error": "x"}, {"label": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check(document, predicted, wrong)


def test_generated_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    """`make proto` was run after the last change."""
    folder = Path(__file__).parent.parent.parent / "daemon" / "serve" / "oip"
    assert (
        protoc.main(["", f"-I{folder}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "open_inference.proto"])
        == 0
    )
    python = (tmp_path / "open_inference_pb2.py").read_text()
    private = python.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
    assert (folder / "open_inference_pb2.py").read_text() == private
    assert (folder / "open_inference_pb2.pyi").read_text() == (tmp_path / "open_inference_pb2.pyi").read_text()
