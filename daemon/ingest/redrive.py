"""Dead letters tried once more, as if they had just come: with the config and the policy as they are now."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from daemon.core.stream import Amendment, Batch, DeadLetter, Record, TopicPartition
from daemon.ingest.assemble import assemble
from daemon.ingest.decode import Decoder


def redriven(
    letters: Sequence[DeadLetter], decoder: Decoder, curate: Callable[[Batch], Batch], now: datetime
) -> Amendment:
    """What becomes of those that can be read now. The others are not part of it: they stay as they are.

    The broker's time of a dead letter is not kept; when it was rejected stands in for it.
    """
    logs: defaultdict[TopicPartition, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        logs[letter.position.topic_partition].append(letter)
    records = [
        Record(letter.position, letter.rejected_at, letter.key, letter.value)
        for log in logs.values()
        for letter in sorted(log, key=lambda letter: letter.position.offset)
    ]
    batch = curate(assemble(records, {}, decoder, now).batch)
    still_dead = {letter.position for letter in batch.dead_letters}
    return Amendment(
        positions=[letter.position for letter in letters if letter.position not in still_dead],
        examples=batch.examples,
        quarantined=batch.quarantined,
        skips=batch.skips,
        halves=batch.halves,
    )
