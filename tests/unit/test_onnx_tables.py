import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from daemon.serve.onnx_tables import mapped, tables

WORDS = np.arange(600, dtype=np.float32).reshape(100, 6)
TYPES = np.arange(200, dtype=np.uint8).reshape(50, 4)


def graph(path: Path, uses: Sequence[tuple[str, str]], initializers: dict[str, NDArray[Any]]) -> Path:
    """`uses`: the operator of each node, and the initializer it takes first."""
    nodes = [helper.make_node(op, [name, "ids"], [f"out{index}"]) for index, (op, name) in enumerate(uses)]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("out0", TensorProto.FLOAT, None)
    values = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [ids], [out], values)), str(path))
    return path


def test_large_tensors_in_which_rows_are_looked_up_are_found_where_they_are(tmp_path: Path) -> None:
    uses = [("Gather", "words"), ("Gather", "types"), ("MatMul", "weights"), ("Gather", "tied"), ("MatMul", "tied")]
    path = graph(
        tmp_path / "g.onnx", uses, {"words": WORDS, "types": TYPES, "weights": WORDS, "tied": WORDS, "unused": WORDS}
    )
    with path.open("rb") as file:
        found = tables(file, least=100)
        assert [(table.name, table.shape, table.dtype) for table in found] == [
            ("words", (100, 6), np.float32),
            ("types", (50, 4), np.uint8),
        ]
        assert [table.name for table in tables(file, least=1000)] == ["words"]
        for table, values in zip(found, (WORDS, TYPES), strict=True):
            file.seek(table.place.start)
            assert file.read(len(table.place)) == values.tobytes()


def test_a_mapped_table_stays_as_it_was_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", [("Gather", "words")], {"words": WORDS})
    (tmp_path / "scratch").mkdir()
    with path.open("r+b") as file:
        [table] = tables(file, least=100)
        values = mapped(file, table, tmp_path / "scratch")
        file.truncate(0)
    np.testing.assert_array_equal(values, WORDS)
    assert not values.flags.writeable
    assert not list((tmp_path / "scratch").iterdir())


def test_a_table_that_the_file_does_not_hold_to_its_end_is_not_mapped(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", [("Gather", "words")], {"words": WORDS})
    with path.open("r+b") as file:
        [table] = tables(file, least=100)
        file.truncate(table.place.stop - 1)
        with pytest.raises(OSError, match="ends within words"):
            mapped(file, table, tmp_path)


@pytest.mark.parametrize("content", [b"no graph at all", b"\xff" * 30, b"\x3a\x7f"])
def test_what_is_no_graph_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"file|field"):
        tables(io.BytesIO(content))
