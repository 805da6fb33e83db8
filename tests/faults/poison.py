"""Every kind of bad record at each place of a batch: it alone becomes a dead letter, and the batch goes on."""

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.config import FieldNames, Splits
from daemon.core.states import RejectReason
from daemon.core.stream import Position, Record
from daemon.ingest.consume import Ingest
from daemon.ingest.decode import Decoder
from daemon.ingest.strict_json import Refused, parse_object
from daemon.policy.schema import RecordsPolicy
from daemon.runtime.telemetry import LearnerMetrics
from daemon.testing.clock import START, ManualClock
from daemon.testing.source import ScriptedSource
from tests.faults import life
from tests.faults.invariants import Finding, check_coverage, dump
from tests.faults.tally import Tally

BATCH = 12
MAX_RECORD = 2000  # bytes


def _with(**changes: Any) -> bytes:
    return json.dumps({"id": "poison", "text": "text", "label": "negative", **changes}).encode()


# As the schema registry's parser refuses records: with a byte in front that no JSON begins with.
_SCHEMA = {b"\x00?": RejectReason.SCHEMA_UNKNOWN, b"\x00!": RejectReason.SCHEMA_MISMATCH}

POISON: dict[RejectReason, bytes | None] = {
    RejectReason.NO_VALUE: None,
    RejectReason.TOO_BIG: _with(text="x" * MAX_RECORD),
    RejectReason.NOT_UTF8: b"\xff\xfe",
    RejectReason.NOT_JSON: b'{"id": "poison", "text": ',
    RejectReason.NOT_AN_OBJECT: b"[1, 2]",
    RejectReason.DUPLICATE_KEY: b'{"id": "poison", "label": "negative", "label": "positive", "text": "text"}',
    RejectReason.NON_FINITE: b'{"id": "poison", "text": "text", "label": "negative", "score": NaN}',
    RejectReason.TOO_DEEP: b'{"id": ' + b"[" * 100 + b"]" * 100 + b"}",
    RejectReason.BAD_UNICODE: _with(text="\ud800"),
    RejectReason.MISSING_FIELD: b'{"id": "poison", "text": "no label"}',
    RejectReason.WRONG_TYPE: _with(text=1),
    RejectReason.EMPTY_TEXT: _with(text=" \n"),
    RejectReason.BAD_TIME: _with(occurred_at="yesterday"),
    RejectReason.BAD_SPLIT: _with(split="exam"),
    RejectReason.UNKNOWN_LABEL: _with(label="furious"),
    RejectReason.UNKNOWN_SOURCE: _with(source="stranger"),
    **{reason: value for value, reason in _SCHEMA.items()},
}


def _parse(value: bytes | None, max_bytes: int) -> dict[str, Any]:
    if value in _SCHEMA:
        raise Refused(_SCHEMA[value], "as the registry's parser says")
    return parse_object(value, max_bytes)


class _Loop:
    """The real loop and the real store; one batch at a time."""

    def __init__(self, folder: Path) -> None:
        self.source = ScriptedSource()
        self.store = life.opened(folder)
        self.offset = 0
        records = RecordsPolicy(
            tombstone="dead_letter",
            unknown_label="dead_letter",
            new_sources="dead_letter",
            trusted_sources=[life.TOPIC],
            max_reject_share=1.0,
        )
        self.ingest = Ingest(
            self.source,
            self.store,
            Decoder(FieldNames(), frozenset(life.LABELS), records, Splits(), MAX_RECORD, parse=_parse),
            clock=ManualClock(),
            metrics=LearnerMetrics(),
            rng=random.Random(1),
            poll_timeout=0.0,
        )

    def one_batch(self, reason: RejectReason, place: int) -> Finding:
        finding = Finding()
        begin, before = self.offset, self.store.counts()
        for index in range(BATCH):
            value = POISON[reason] if index == place else _with(id=f"id-{begin + index}", text=f"text {begin + index}")
            self.source.produce(Record(Position(life.TOPIC, 0, begin + index), START, b"key", value))
        self.offset += BATCH
        self.ingest.step()
        after, (letter, *_) = self.store.counts(), self.store.dead_letters(1) or [None]
        finding.lost = begin + BATCH - self.store.next_offsets()[life.ZERO]
        kept = (after.examples - before.examples, after.dead_letters - before.dead_letters)
        if kept != (BATCH - 1, 1):
            finding.broken.append(f"{kept[0]} examples and {kept[1]} dead letters of a batch of {BATCH}")
        elif letter is None or (letter.position.offset, letter.reason, letter.value) != (
            begin + place,
            reason,
            POISON[reason],
        ):
            finding.broken.append(f"the dead letter is {letter}")
        return finding


def poison(advance: Callable[[Tally], None] = lambda _: None) -> Tally:
    """All reasons at all places of a batch; and the whole of it accounted for at the end."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="relearnd-poison-") as folder:
        loop = _Loop(Path(folder))
        for reason in POISON:
            for place in range(BATCH):
                tally.add("poison", loop.one_batch(reason, place), where=f"{reason} at {place}")
                advance(tally)
        finding = Finding()
        check_coverage(loop.store, dump(loop.store), finding)
        tally.add("poison", finding, points=0, where="at the end")
        loop.store.close()
    return tally


def points() -> int:
    return len(POISON) * BATCH
