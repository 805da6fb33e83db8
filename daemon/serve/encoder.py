"""Text to token ids. The one home of `tokenizers`."""

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from daemon.core.errors import ArtefactError

_PADDING_ID = 0
_SHORT = 1000  # characters; encoding more than that must not hold other threads up


class Cut(list[int]):
    """Token ids of as much of a text as is read, of one that is longer."""


class Encoder:
    """A base's tokenizer, cutting at `max_tokens`. Padding and truncation written in the file are not used: they are the base's
    author's habits, not ours. Safe from any thread."""

    def __init__(self, tokenizer_json: bytes, max_tokens: int) -> None:
        self._most = max_tokens
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_tokens)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ArtefactError(f"the tokenizer cannot be used: {error}") from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids per text, 1 to `max_tokens` each, Cut where that is not all: a text in which there is nothing to read is one
        padding token."""
        if len(texts) == 1 and len(texts[0]) <= _SHORT:
            encodings = [self._tokenizer.encode(texts[0])]  # in half the time of a batch
        else:
            encodings = self._tokenizer.encode_batch(list(texts))
        return [self._read(encoding) for encoding in encodings]

    def _read(self, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids or [_PADDING_ID]
        return Cut(ids) if len(ids) == self._most and encoding.overflowing else ids
