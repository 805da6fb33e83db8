import json
import re
import struct
from typing import Any

import pytest

from daemon.core.errors import UsageError
from daemon.core.types import Prediction
from daemon.serve.open_inference import Inference, binary_data, inference_answer, parse_inference, unpack_texts
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
        (body(data=None), "has no data"),
        (body(data=["good", 1]), "must be strings"),
        (body(data=["good", ["a", "b"]]), "must be strings"),
        (body(shape=[3]), r"shape \[3\], but 2 texts"),
        (body(shape=[1, 2]), "shape"),
        (body(shape=[True], data=["good"]), "got `bool`"),
        (
            b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}], "outputs": [{"name": "x"}]}',
            "unknown outputs",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_to_send_instead(request_body: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_inference(request_body)


def binary(texts: list[bytes], *, size: int | None = None, **changes: Any) -> tuple[bytes, str]:
    """Body and header of a request whose texts follow its JSON."""
    packed = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    parameters = {"binary_data_size": len(packed) if size is None else size}
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "parameters": parameters}
    head = json.dumps({"inputs": [tensor], **changes}).encode()
    return head + packed, str(len(head))


def test_texts_come_in_binary_behind_the_json() -> None:
    asked = parse_inference(*binary([b"good", "bäd 💥".encode(), b""]))
    assert (asked.texts, asked.binary) == (["good", "bäd 💥", ""], frozenset())


@pytest.mark.parametrize(
    ("request_body", "header", "says"),
    [
        (*binary([b"good"], size=7), "binary_data_size of input 'text' is 7, but 8 bytes follow"),
        (*binary([], size=False), "got `bool`"),
        (*binary([b"good"], outputs=[{"name": "label", "parameters": {"classification": True}}]), "got `bool`"),
        (binary([b"good"])[0], None, "not the JSON"),
        (b"{}", "3", "says 3 bytes of JSON, but the body has 2"),
        (b"{}", "-1", "is the number of bytes"),
        (b"{}", "9" * 12, "is the number of bytes"),
        (binary([b"good"])[0][:-1], binary([b"good"])[1], "but 7 bytes follow"),
        (*binary([b"\xff\xfe"]), "text 0 is not UTF-8"),
        (*binary([b"good"], outputs=[{"name": "label", "parameters": {"classification": 2}}]), "classification"),
        (*binary([b"good"], outputs=[{"name": "label"}, {"name": "label"}]), "each output once"),
    ],
)
def test_binary_data_that_does_not_fit_its_announcement_is_refused(
    request_body: bytes, header: str | None, says: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse_inference(request_body, header)


@pytest.mark.parametrize("raw", [b"\x01", b"\x05\0\0\0good", b"\xff\xff\xff\xffgood", b"\x01\0\0\0a\x02\0\0\0b"])
def test_an_element_that_is_cut_short_is_refused(raw: bytes) -> None:
    with pytest.raises(UsageError, match="ends inside element"):
        unpack_texts(raw)


def test_outputs_are_binary_one_by_one_or_all_but_those_that_say_otherwise() -> None:
    two = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "confidence"}]
    assert parse_inference(*binary([b"a"], outputs=two)).binary == {"label"}
    but_one = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "confidence"}]
    asked = parse_inference(*binary([b"a"], outputs=but_one, parameters={"binary_data_output": True}))
    assert asked.binary == {"confidence"}


def test_binary_outputs_are_announced_by_their_size_and_follow_in_order() -> None:
    chosen = frozenset({"label", "probabilities"})
    asked = Inference(["good", "bad"], ["confidence", "label", "probabilities"], None, chosen)
    outputs = inference_answer(asked, version_of(1), TWO)["outputs"]
    assert [output.get("parameters") for output in outputs] == [
        None,
        {"binary_data_size": 14},
        {"binary_data_size": 16},
    ]
    packed = b"\x02\0\0\0up\x04\0\0\0down" + struct.pack("<4f", 0.25, 0.75, 0.5, 0.5)
    assert binary_data(asked, TWO) == packed


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
