"""Whether a dead letter is about a person: their name in its bytes, however it may be written there. In doubt it is."""

import json
import re
from collections.abc import Callable, Iterable, Iterator

from daemon.core.stream import DeadLetter

ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
JSON_IN_JSON = 3  # levels of escapes that are undone

_ESCAPES = re.compile(rb'((?:\\u[0-9A-Fa-f]{4})+)|\\(["\\/bfnrt])')
_MEANT = dict(zip(b"bfnrt", b"\b\f\n\r\t", strict=True))


def holds(person: str, strings: Callable[[DeadLetter], Iterable[str]]) -> Callable[[DeadLetter], bool]:
    """`strings`: what a letter says to somebody who knows its schema; none where nobody does.

    In JSON and other text the name counts as a word of its own: `7` is not in `17`. In bytes that may be anything it counts
    wherever it stands, for what comes before it may be its length.
    """
    name = b"|".join(map(re.escape, _spellings(person)))
    anywhere, word = re.compile(name), re.compile(rb"(?<![0-9A-Za-z])(?:" + name + rb")(?![0-9A-Za-z])")

    def mentions(part: bytes | None, is_text: Callable[[bytes], bool]) -> bool:
        if part is None or not any(map(anywhere.search, _unescaped(part))):
            return False
        return any(map(word.search, _unescaped(part))) or not is_text(part)

    def found(letter: DeadLetter) -> bool:
        said = (letter.detail, *strings(letter))
        return (
            mentions(letter.value, _is_json)
            or mentions(letter.key, _is_printable)
            or any(word.search(text.encode(errors="surrogatepass")) for text in said)
        )

    return found


def _spellings(person: str) -> Iterator[bytes]:
    for encoding in ENCODINGS:
        try:
            yield person.encode(encoding)
        except UnicodeEncodeError:
            continue


def _unescaped(part: bytes) -> Iterator[bytes]:
    """As it is, then with JSON's escapes undone, once more in each step: JSON may be a string within JSON."""
    yield part
    for _ in range(JSON_IN_JSON):
        if b"\\" not in part:
            return
        part = _ESCAPES.sub(_meant, part)
        yield part


def _meant(escape: re.Match[bytes]) -> bytes:
    units, character = escape.groups()
    if units is None:
        return bytes([_MEANT.get(character[0], character[0])])
    text = bytes.fromhex(units.replace(rb"\u", b"").decode()).decode("utf-16-be", "surrogatepass")
    return text.encode(errors="surrogatepass")


def _is_json(part: bytes) -> bool:
    try:
        json.loads(part.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _is_printable(part: bytes) -> bool:
    try:
        return part.decode().isprintable()
    except UnicodeDecodeError:
        return False
