"""What must hold whatever died when. Asked of the store through its own code, and of its tables row by row.

I1 every offset from start to next ends in exactly one place; I2 next never goes back; I3 what was acknowledged is durable;
I4 what is stored is what was produced; I12 one writer: the epoch rises with each opening.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.core.stream import TopicPartition
from daemon.store.duckdb_store import DuckdbStore

Place = tuple[str, int, int]  # topic, partition, offset
Value = tuple[Any, ...]  # the table and the row's content

OLD = "old"  # the topic that an earlier release has read: `life.begin_with_schema_1`
OF_RECORDS = ("examples", "dead_letters", "quarantine", "halves")
OF_RANGES = ("gaps", "skips")
VOLATILE = {"seq", "topic", "part", "off", "start", "stop"}


@dataclass
class Finding:
    """What is wrong at one point; nothing, when it is as it should be."""

    lost: int = 0
    twice: int = 0
    broken: list[str] = field(default_factory=list)
    refused: bool = False  # the file was damaged, the store said so and opened nothing; allowed only where it must be

    @property
    def clean(self) -> bool:
        return not (self.lost or self.twice or self.broken)


@dataclass(frozen=True)
class Dump:
    """Every offset that is in the store, and every place it is in."""

    places: Mapping[Place, list[Value]]
    bounds: Mapping[TopicPartition, tuple[int, int]]  # start, next
    seqs: list[int]
    tails: list[tuple[Any, ...]]

    def value(self, place: Place) -> Value | None:
        found = self.places.get(place, [])
        return found[0] if found else None


def dump(store: DuckdbStore) -> Dump:
    places: dict[Place, list[Value]] = defaultdict(list)
    with store.database.cursor() as cursor:
        tables = {name for (name,) in cursor.execute("select table_name from duckdb_tables()").fetchall()}
        for table in (*OF_RECORDS, *OF_RANGES):
            if table in tables:
                for place, value in _rows(cursor, table):
                    places[place].append(value)
        offsets = cursor.execute("select topic, part, start, next from offsets").fetchall()
        seqs = [seq for (seq,) in cursor.execute("select seq from examples order by seq").fetchall()]
        tails = cursor.execute("select * from offsets order by topic, part").fetchall()
    return Dump(places, {TopicPartition(t, p): (start, next_) for t, p, start, next_ in offsets}, seqs, tails)


def _rows(cursor: Any, table: str) -> Iterator[tuple[Place, Value]]:
    cursor.execute(f"select * from {table}")
    names = [column[0] for column in cursor.description]
    for row in cursor.fetchall():
        named = dict(zip(names, row, strict=True))
        content = (table, *(value for name, value in named.items() if name not in VOLATILE))
        offsets = [named["off"]] if "off" in named else range(named["start"], named["stop"])
        for offset in offsets:
            yield (named["topic"], named["part"], offset), content


def check_coverage(store: DuckdbStore, found: Dump, finding: Finding) -> None:
    """I1, and that the store's own count of it says the same."""
    inside = {
        (*partition, offset) for partition, (start, next_) in found.bounds.items() for offset in range(start, next_)
    }
    finding.lost += len(inside - found.places.keys())
    finding.twice += sum(len(values) - 1 for values in found.places.values())
    strays = found.places.keys() - inside
    if strays:
        finding.broken.append(f"{len(strays)} rows outside of what was read, the first at {min(strays)}")
    if len(found.seqs) != len(set(found.seqs)):
        finding.broken.append("a seq was given twice")
    coverage = store.coverage()
    if (coverage.lost, coverage.twice) != (finding.lost, finding.twice):
        finding.broken.append(f"coverage says {coverage}, the rows say {finding.lost} lost and {finding.twice} twice")
    counts = store.counts()
    examples = sum(values[0][0] == "examples" for values in found.places.values())
    if counts.examples != examples:
        finding.broken.append(f"counts say {counts.examples} examples, there are {examples}")


@dataclass(frozen=True)
class Reference:
    """The undisturbed life: the store after each stage."""

    stages: list[Dump]

    def check_content(self, found: Dump, ended: int, began: int, finding: Finding) -> None:
        """I4: each offset holds what it held after the last stage that ended, or what the open one makes of it."""
        stages = self.stages[max(0, ended) : began + 1] or self.stages[:1]
        strange = [
            place
            for place, values in found.places.items()
            if not any(values[0] == stage.value(place) for stage in stages)
        ]
        if strange:
            finding.broken.append(f"{len(strange)} offsets hold something else, the first is {min(strange)}")

    def check_end(self, found: Dump, finding: Finding) -> None:
        last = self.stages[-1]
        if found.bounds != last.bounds:
            finding.broken.append(f"it ends at {found.bounds}, undisturbed at {last.bounds}")
        if found.tails != last.tails:
            finding.broken.append(f"the tails are {found.tails}, undisturbed {last.tails}")
        if found.places != last.places:
            finding.broken.append("it does not end with what the undisturbed life ends with")


@dataclass
class Testimony:
    """What the witness wrote down."""

    asked: dict[TopicPartition, int] = field(default_factory=dict)
    acknowledged: dict[TopicPartition, int] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    began: int = 0
    ended: int = -1

    @classmethod
    def read(cls, path: Path) -> "Testimony":
        said = cls()
        for line in path.read_text().splitlines() if path.exists() else ():
            what, value = json.loads(line)
            if what in ("asked", "acknowledged"):
                getattr(said, what).update({TopicPartition(t, p): next_ for t, p, next_ in value})
            elif what == "epoch":
                said.epochs.append(value)
            elif what == "began":
                said.began = max(said.began, value)
            elif what == "ended":
                said.ended = max(said.ended, value)
        return said

    def check(self, found: Dump, epoch: int, finding: Finding) -> None:
        """I2, I3 and I12. A store restored from a backup has no witness: what was asked of it before is not known."""
        for partition, acknowledged in self.acknowledged.items():
            _, stands = found.bounds.get(partition, (0, 0))
            finding.lost += max(0, acknowledged - stands)
        for partition, (_, stands) in found.bounds.items():
            if self.asked and partition.topic != OLD and stands > self.asked.get(partition, 0):
                finding.broken.append(f"{partition} stands at {stands}, nobody asked for that")
        if self.epochs and epoch <= max(self.epochs):
            finding.broken.append(f"epoch {epoch} after {max(self.epochs)}")
