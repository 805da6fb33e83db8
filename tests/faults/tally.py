"""What came of the points: counted by fault, told as a table, written as JSON."""

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.invariants import Finding

MOST_TOLD = 20


@dataclass
class Count:
    points: int = 0
    lost: int = 0
    twice: int = 0
    broken: int = 0  # points at which anything else was not as it must be
    refused: int = (
        0  # points at which the file was found damaged and not opened, and the backup and the log brought all back
    )


@dataclass
class Tally:
    by_fault: dict[str, Count] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def add(self, fault: str, finding: Finding, *, points: int = 1, where: str = "") -> None:
        count = self.by_fault.setdefault(fault, Count())
        count.points += points
        count.lost += finding.lost
        count.twice += finding.twice
        count.broken += bool(finding.broken)
        count.refused += finding.refused
        if not finding.clean and len(self.told) < MOST_TOLD:
            self.told.append(f"{fault} {where}: {finding}")

    def merge(self, other: "Tally") -> None:
        for fault, count in other.by_fault.items():
            ours = self.by_fault.setdefault(fault, Count())
            for name in vars(count):
                setattr(ours, name, getattr(ours, name) + getattr(count, name))
        self.told += other.told

    @property
    def total(self) -> Count:
        return Count(*(sum(getattr(count, name) for count in self.by_fault.values()) for name in vars(Count())))

    @property
    def clean(self) -> bool:
        return (self.total.lost, self.total.twice, self.total.broken) == (0, 0, 0)

    def write(self, path: Path, *, seconds: float, when: str) -> None:
        total = self.total
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "name": "faults",
                    "when": when,
                    "machine": f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores",
                    "points": total.points,
                    "lost": total.lost,
                    "twice": total.twice,
                    "broken": total.broken,
                    "refused": total.refused,
                    "by_fault": {fault: vars(count) for fault, count in self.by_fault.items()},
                    "seconds": round(seconds, 1),
                },
                indent=2,
            )
            + "\n"
        )

    def print(self, console: Console) -> None:
        table = Table("fault", "points", "lost", "twice", "broken", "refused", title="0 lost, 0 twice is the promise")
        for column in table.columns[1:]:
            column.justify = "right"
        for fault, count in [*self.by_fault.items(), ("all", self.total)]:
            table.add_row(fault, *(f"{value:,}" for value in vars(count).values()))
        console.print(table)
        for line in self.told:
            console.print(line, markup=False, highlight=False)
