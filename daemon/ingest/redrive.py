"""Dead letters tried once more, as if they had just come: with the config and the policy as they are now."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from daemon.core.stream import Amendment, Batch, DeadLetter, Record, TopicPartition
from daemon.ingest.assemble import assemble
from daemon.ingest.cut_letters import is_cut
from daemon.ingest.decode import Decoder, Parse
from daemon.ingest.strict_json import Refused


def redriven(
    letters: Sequence[DeadLetter], decoder: Decoder, curate: Callable[[Batch], Batch], now: datetime
) -> Amendment:
    """What becomes of those that can be read now. The others, and those that are cut, are not part of it: they stay as they are.

    The broker's time of a dead letter is not kept; when it was rejected stands in for it.
    """
    logs: defaultdict[TopicPartition, list[DeadLetter]] = defaultdict(list)
    whole = [letter for letter in letters if not is_cut(letter)]
    for letter in whole:
        logs[letter.position.topic_partition].append(letter)
    records = [
        Record(letter.position, letter.rejected_at, letter.key, letter.value)
        for log in logs.values()
        for letter in sorted(log, key=lambda letter: letter.position.offset)
    ]
    batch = curate(assemble(records, {}, decoder, now).batch)
    still_dead = {letter.position for letter in batch.dead_letters}
    return Amendment(
        positions=[letter.position for letter in whole if letter.position not in still_dead],
        examples=batch.examples,
        quarantined=batch.quarantined,
        skips=batch.skips,
        halves=batch.halves,
    )


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
