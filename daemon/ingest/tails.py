"""By what a log is recognised: the last record that was read from it."""

from datetime import UTC, datetime, timedelta
from hashlib import blake2b

from daemon.core.stream import Record, Tail

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def tail_of(record: Record) -> Tail:
    """What the store keeps of the last record below a next offset."""
    moment = -1 if record.timestamp is None else (record.timestamp - _EPOCH) // timedelta(milliseconds=1)
    return Tail(record.position.offset, moment, _hash(record.key), _hash(record.value), record.leader_epoch)


def is_same(tail: Tail, found: Tail) -> bool:
    """Whether that is the record we read. Its leader epoch may differ: brokers older than we knew give none."""
    return (tail.offset, tail.timestamp, tail.key_hash, tail.value_hash) == (
        found.offset,
        found.timestamp,
        found.key_hash,
        found.value_hash,
    )


def _hash(content: bytes | None) -> str:
    return "" if content is None else blake2b(content, digest_size=16).hexdigest()
