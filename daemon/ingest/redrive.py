"""Dead letters tried once more, as if they had just come: with the config and the policy as they are now."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from daemon.core.errors import SourceError
from daemon.core.stream import Amendment, Batch, DeadLetter, Position, Record, TopicPartition
from daemon.ingest.assemble import assemble
from daemon.ingest.cut_letters import is_cut, mended, whole_size
from daemon.ingest.decode import Decoder, Parse
from daemon.ingest.strict_json import Refused
from daemon.runtime.arrow_examples import joined

LookUp = Callable[[Sequence[Position]], Iterable[Record]]
"""Reads the records at these places once more where they came from. What is not there any more is left out."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """`failure`: why some of those that are cut could not be looked up."""

    amendment: Amendment
    failure: SourceError | None


def redriven(
    letters: Sequence[DeadLetter], decoder: Decoder, curate: Callable[[Batch], Batch], now: datetime, look_up: LookUp
) -> Redriven:
    """What becomes of those that can be read now. The others are not part of it: they stay as they are.

    Those that are cut are looked up, unless they are too large as ever. The broker's time of a dead letter is not kept; when it
    was rejected stands in for it.
    """
    failure = None
    batches = [_read_again([letter for letter in letters if not is_cut(letter)], decoder, now)]
    try:
        # One by one: of what is refused once more the bytes are not needed, and what is in an example has its own limit.
        for letter in _looked_up(letters, look_up, decoder.max_record):
            batches.append(_read_again([letter], decoder, now))
    except SourceError as error:
        failure = error
    examples = joined([each.examples for each in batches])
    skips = [skip for each in batches for skip in each.skips]
    halves = [half for each in batches for half in each.halves]
    positions = [
        *(example.position for example in examples),
        *(half.position for half in halves),
        *(Position(skip.topic, skip.partition, skip.start) for skip in skips),
    ]
    batch = curate(Batch(examples, [], [], {}, skips=skips, halves=halves))
    return Redriven(Amendment(positions, batch.examples, [], batch.quarantined, batch.skips, batch.halves), failure)


def _looked_up(letters: Sequence[DeadLetter], look_up: LookUp, max_record: int) -> Iterator[DeadLetter]:
    lost = {letter.position: letter for letter in letters if is_cut(letter) and whole_size(letter) <= max_record}
    for record in look_up([*lost]) if lost else ():
        letter = mended(lost[record.position], record)
        if letter:
            yield letter


def _read_again(letters: Sequence[DeadLetter], decoder: Decoder, now: datetime) -> Batch:
    logs: defaultdict[TopicPartition, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        logs[letter.position.topic_partition].append(letter)
    records = [
        Record(letter.position, letter.rejected_at, letter.key, letter.value)
        for log in logs.values()
        for letter in sorted(log, key=lambda letter: letter.position.offset)
    ]
    return replace(assemble(records, {}, decoder, now).batch, dead_letters=[])


def strings_in(value: bytes | None, parse: Parse, max_record: int) -> Iterable[str]:
    """Of a record that can be parsed, every name, text and number in it."""
    try:
        yield from _strings(parse(value, max_record))
    except Refused:
        return


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str | int | float):
        yield str(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
