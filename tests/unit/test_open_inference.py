import json
from typing import Any

import pytest

from daemon.core.errors import UsageError
from daemon.core.types import Prediction
from daemon.serve.open_inference import Inference, inference_answer, parse_inference
from tests.artefacts import version_of

TWO = [Prediction("up", 0.75, [0.25, 0.75]), Prediction("down", 0.5, [0.5, 0.5])]


def body(**changes: Any) -> bytes:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("shape", "data"), [([2], ["good", "bad"]), ([2, 1], ["good", "bad"]), ([2, 1], [["good"], ["bad"]])]
)
def test_texts_come_flat_or_as_rows_of_one(shape: list[int], data: list[Any]) -> None:
    assert parse_inference(body(shape=shape, data=data)).texts == ["good", "bad"]


@pytest.mark.parametrize(
    ("request_body", "says"),
    [
        (b"", "not the JSON"),
        (b"\xff", "not the JSON"),
        (
            b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ' + b"[" * 100_000,
            "nested too deeply",
        ),
        (b"[]", "not the JSON"),
        (b'{"inputs": []}', "exactly one input"),
        (body(name="texts"), "named 'text'"),
        (body(datatype="FP32"), "datatype BYTES; got 'FP32'"),
        (body(data=None), "binary extension"),
        (body(data=["good", 1]), "must be strings"),
        (body(data=["good", ["a", "b"]]), "must be strings"),
        (body(shape=[3]), r"shape \[3\], but 2 texts"),
        (body(shape=[1, 2]), "shape"),
        (
            b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}], "outputs": [{"name": "x"}]}',
            "unknown outputs",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_to_send_instead(request_body: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_inference(request_body)


def test_the_answer_names_its_version_echoes_the_id_and_gives_all_outputs() -> None:
    asked = Inference(["good", "bad"], ["label", "confidence", "probabilities"], "abc")
    assert inference_answer(asked, version_of(7), TWO) == {
        "model_name": "tweets",
        "model_version": "7",
        "id": "abc",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["up", "down"]},
            {"name": "confidence", "datatype": "FP32", "shape": [2], "data": [0.75, 0.5]},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
        ],
    }


def test_only_the_outputs_that_were_asked_for_in_their_order() -> None:
    request = json.loads(body())
    request["outputs"] = [{"name": "probabilities"}, {"name": "label"}]
    asked = parse_inference(json.dumps(request).encode())
    assert asked.id is None
    answer = inference_answer(asked, version_of(1), TWO)
    assert [output["name"] for output in answer["outputs"]] == ["probabilities", "label"]
    assert "id" not in answer
