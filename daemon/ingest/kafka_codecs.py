"""Compressed batches, unpacked up to a limit: a few kilobytes of zeros can unpack to gigabytes, and the client's own decoders
would build them whole before anybody could look.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from kafka import codec
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

_PIECE = 1 << 17  # bytes of one step
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER = 16


class TooLargeError(CorruptRecordError):  # type: ignore[misc]
    """A batch that unpacks to more than is allowed."""

    def __str__(self) -> str:
        return str(self.args[0])


def unpacked(kind: int, data: bytes, most: int) -> bytes:
    """The content of a compressed batch. `kind` is Kafka's number of the codec, which must be installed; `most` in bytes.

    TooLargeError, before more than about `most` bytes are held; anything else where the data are damaged.
    """
    content = _DECODERS[kind](data, most)
    if len(content) > most:
        raise _too_large(most)
    return content


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"a batch of it unpacks to more than {most:,} bytes, which is kafka.max_unpacked; raise that to read it"
    )


def _joined(pieces: Iterator[bytes], most: int) -> bytes:
    found, size = [], 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > most:
            break
    return b"".join(found)


def _gzip(data: bytes, most: int) -> bytes:
    def members() -> Iterator[bytes]:
        left = data
        while left:
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            yield member.decompress(left, most + 1)
            if not (member.eof or member.unconsumed_tail):
                raise CorruptRecordError("a gzip stream without an end")
            left = member.unused_data

    return _joined(members(), most)


def _zstd(data: bytes, most: int) -> bytes:
    with codec.zstd.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
        return _joined(iter(partial(stream.read, _PIECE), b""), most)


def _lz4(data: bytes, most: int) -> bytes:
    def pieces() -> Iterator[bytes]:
        stream, left = codec.lz4.LZ4FrameDecompressor(), data
        while not stream.eof:
            piece = stream.decompress(left, max_length=_PIECE)
            if not piece and not stream.eof:
                raise CorruptRecordError("an lz4 frame without an end")
            left = b""
            yield piece

    return _joined(pieces(), most)


def _snappy(data: bytes, most: int) -> bytes:
    """Each block says first how long its content is; that is where memory is asked for, so it is looked at before."""
    if sum(map(_said_length, _snappy_blocks(data))) > most:
        raise _too_large(most)
    content: bytes = codec.snappy_decode(data)
    return content


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield data
        return
    start = _XERIAL_HEADER
    while start < len(data):
        (size,) = struct.unpack_from(">i", data, start)
        if size <= 0:
            raise CorruptRecordError(f"a snappy block of {size} bytes")
        yield data[start + 4 : start + 4 + min(size, 5)]
        start += 4 + size


def _said_length(block: bytes) -> int:
    length = 0
    for place, byte in enumerate(block[:5]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return length
    raise CorruptRecordError("a snappy block without a length")


_DECODERS: dict[int, Callable[[bytes, int], bytes]] = {
    DefaultRecordBatch.CODEC_GZIP: _gzip,
    DefaultRecordBatch.CODEC_SNAPPY: _snappy,
    DefaultRecordBatch.CODEC_LZ4: _lz4,
    DefaultRecordBatch.CODEC_ZSTD: _zstd,
}
