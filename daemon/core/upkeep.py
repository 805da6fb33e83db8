"""What becomes of data after it was stored: runs remember it, it expires, people are forgotten, it is copied and looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from daemon.core.stream import Coverage, DeadLetter, Position, Quarantined

SeqRanges = Sequence[tuple[int, int]]
"""Seqs from first to last, both included, in order."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Which examples a run was trained and judged on, by the file of its snapshot."""

    run_id: str
    sha256: str  # of the snapshot's manifest
    rows: Mapping[str, int]  # empty, as `seqs` is, once the run is older than `Retention.keep_details`
    seqs: Mapping[str, SeqRanges]
    expired_at: datetime | None  # some of them were deleted by retention since
    erased_at: datetime | None  # some of them were of a person who was forgotten since


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept; None: for ever. `keep_examples`: at most so many, the newest."""

    keep_for: timedelta | None
    keep_examples: int | None
    keep_waits: timedelta  # decisions to wait; all others are kept for ever
    keep_details: timedelta  # which examples a run was given, row by row, and the log of retention


@dataclass(frozen=True, slots=True)
class Expired:
    """What one pass of retention took out; at most a bounded number of each, so `more` may be left for the next pass."""

    examples: int
    dead_letters: int
    quarantined: int
    halves: int
    waits: int
    runs: Sequence[str]  # whose data is no longer whole since this pass
    more: bool


@dataclass(frozen=True, slots=True)
class Erasure:
    """One person forgotten, in counts. `finished_at` None: rows are gone, the store's file is not rewritten yet."""

    number: int
    asked_at: datetime
    finished_at: datetime | None
    examples: int
    dead_letters: int
    quarantined: int
    halves: int
    runs: Sequence[str]  # that were given an example of the person, also those an earlier erasure has named


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of the store, proved equal when it was made; `MANIFEST.json` of its folder."""

    folder: str
    created_at: datetime
    sha256: str  # of the copy's file
    size: int  # bytes
    store_id: str
    schema_version: int
    tables: Mapping[str, int]  # rows of each
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `what_to_do` is empty when all is well."""

    what: str
    ok: bool
    detail: str
    what_to_do: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which dead letters or quarantined records are meant; what is None does not matter."""

    position: Position | None = None
    reason: str | None = None
    source: str | None = None
    label: str | None = None


class Keeper(Protocol):
    """The upkeep of one store; by the process that has it open, from any thread. Raises StoreError."""

    def find_dead_letters(self, chosen: Chosen, *, after: int, limit: int) -> Sequence[tuple[int, DeadLetter]]:
        """With their numbers, those with a greater one than `after`, the oldest first."""

    def find_quarantined(self, chosen: Chosen, limit: int) -> Sequence[Quarantined]:
        """The oldest first."""

    def run_data(self, run_id: str) -> RunData | None:
        """None when the run was given none, or was before the store remembered it."""

    def newest_ingested(self, at: datetime) -> datetime | None:
        """When the newest example was taken in, by our own clock; none of after `at`."""

    def newest_sent(self, at: datetime) -> datetime | None:
        """When the newest record that was read was sent, by Kafka; none of after `at`."""

    def expire(self, retention: Retention, at: datetime) -> Expired:
        """One pass: the oldest first, a bounded number; their offsets stay covered, their runs are marked."""

    def forget(self, subject: str, holds: Callable[[DeadLetter], bool], at: datetime) -> Erasure:
        """Delete every record of a person, and dead letters of which `holds` is true; take none of `subject` ever again.

        One transaction; `finish_erasure` is still to follow.
        """

    def unfinished_erasures(self) -> Sequence[Erasure]: ...

    def finish_erasure(self, number: int, at: datetime) -> None:
        """Rewrite the file so that no byte of what was deleted is left in it."""

    def kept_beside(self) -> Sequence[str]:
        """Names of older copies of the store in its folder, from which nobody is ever erased."""

    def back_up(self, folder: Path, at: datetime) -> Backup:
        """A new folder inside `folder`, with a copy that was proved equal. Ingest goes on meanwhile."""

    def export(self, folder: Path, form: str) -> Sequence[Path]:
        """The tables for analysts, "parquet" or "duckdb", read-only files, each replaced whole."""

    def examine(self) -> Sequence[Finding]:
        """The open store: schema, coverage, every block read, sizes."""
