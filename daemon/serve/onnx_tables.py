"""The large tables of an ONNX file, such as embeddings: where in the file they are, and a mapping of them that takes no memory for
rows which nobody asks for. Of protobuf and onnx.proto only what that needs: the onnx package is no part of a server."""

import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_LEAST = 4 << 20  # bytes; a smaller table is not worth a file
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # in ModelProto, GraphProto, GraphProto
_INPUT, _OP_TYPE = 1, 4  # in NodeProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # in TensorProto
_TYPES: Mapping[int, np.dtype[Any]] = {1: np.dtype(np.float32), 2: np.dtype(np.uint8), 3: np.dtype(np.int8)}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # how protobuf writes a field
_LONGEST_VARINT = 10

Place = range  # of bytes in the file


@dataclass(frozen=True, slots=True)
class Table:
    """An initializer that rows are looked up in. `place`: of its values in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    place: Place


def tables(file: BinaryIO, *, least: int = _LEAST) -> list[Table]:
    """Those of at least `least` bytes which nodes do nothing else with. Raises ValueError for what is not an ONNX file."""
    looked_up: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    found = []
    for graph in _parts(file, Place(0, file.seek(0, os.SEEK_END)), _GRAPH):
        for number, place in _fields(file, graph):
            if number == _NODE and isinstance(place, Place):
                inputs = [_text(file, each) for each in _parts(file, place, _INPUT)]
                uses.update(inputs)
                if [_text(file, each) for each in _parts(file, place, _OP_TYPE)] == ["Gather"]:
                    looked_up[inputs[0]] += 1
            elif number == _INITIALIZER and isinstance(place, Place) and len(place) >= least:
                found.append(_table(file, place))
    return [
        table
        for table in found
        if len(table.place) >= least
        and len(table.place) == prod(table.shape) * table.dtype.itemsize
        and uses[table.name] == looked_up[table.name] > 0
    ]


def mapped(file: BinaryIO, table: Table, folder: Path) -> NDArray[Any]:
    """The table, from a copy in `folder` without a name: nobody else can change it, and it goes when the process does.

    Raises OSError.
    """
    with tempfile.TemporaryFile(dir=folder) as copy:
        start = table.place.start
        while start < table.place.stop:
            start += (sent := os.sendfile(copy.fileno(), file.fileno(), start, table.place.stop - start))
            if not sent:
                raise OSError(f"the file ends within {table.name}")
        pages = mmap.mmap(copy.fileno(), len(table.place), prot=mmap.PROT_READ)
    return np.frombuffer(pages, table.dtype).reshape(table.shape)


def _table(file: BinaryIO, place: Place) -> Table:
    shape: list[int] = []
    dtype: np.dtype[Any] = np.dtype(np.void)
    name, values = "", Place(0)
    for number, value in _fields(file, place):
        if number == _DIMS and isinstance(value, int):
            shape.append(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            dtype = _TYPES.get(value, dtype)
        elif number == _NAME and isinstance(value, Place):
            name = _text(file, value)
        elif number == _RAW_DATA and isinstance(value, Place):
            values = value
    return Table(name, tuple(shape), dtype, values)


def _parts(file: BinaryIO, place: Place, wanted: int) -> Iterator[Place]:
    return (value for number, value in _fields(file, place) if number == wanted and isinstance(value, Place))


def _fields(file: BinaryIO, place: Place) -> Iterator[tuple[int, int | Place]]:
    """The number of each field of the message there, and its value, or where its bytes are. The file may be read meanwhile."""
    at = place.start
    while at < place.stop:
        file.seek(at)
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value = _varint(file)
            at = file.tell()
            yield number, value
        elif kind == _LENGTH:
            size = _varint(file)
            at = file.tell() + size
            if at > place.stop:
                raise ValueError("a part of the file is longer than what it is a part of")
            yield number, Place(at - size, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at = file.tell() + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"there is no kind {kind} of field")


def _varint(file: BinaryIO) -> int:
    value = 0
    for place in range(_LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:
            return value
    raise ValueError("the file ends within a number, or is not an ONNX file")


def _text(file: BinaryIO, place: Place) -> str:
    file.seek(place.start)
    return file.read(len(place)).decode(errors="replace")
