"""The seams. Each has a real adapter and one in memory (`daemon.testing`), and one contract suite over both.

Unless a method says otherwise it may be called from any thread.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from daemon.core.errors import RunCancelled
from daemon.core.states import Split
from daemon.core.stream import (
    Amendment,
    Batch,
    Coverage,
    DeadLetter,
    Half,
    ListedLetter,
    Quarantined,
    Record,
    StoreCounts,
    StoredExample,
    Tail,
    TopicPartition,
    Trouble,
)
from daemon.core.types import (
    Aliases,
    ColumnDrift,
    DataManifest,
    Decision,
    DriftTest,
    Lineage,
    ModelVersion,
    Prediction,
    Progress,
    Run,
    RunResult,
    RunSpec,
    ServerReport,
    StoredDecision,
    WindowRow,
)

Clock = Callable[[], datetime]  # aware, UTC


class Source(Protocol):
    """The stream. Used by one thread only. `start` and `poll` may raise SourceError, after which `start` is called again."""

    def start(
        self, next_offsets: Mapping[TopicPartition, int], tails: Mapping[TopicPartition, Tail] | None = None
    ) -> Mapping[TopicPartition, int]:
        """Stand at these offsets; at the beginning of partitions not named. Called first, and again after a failed commit.

        Returns the first offset left of each named partition whose records from its next offset on were deleted by
        retention; the source stands there then. A partition whose log ends before its next offset, or holds another
        record where its tail says, is not read and is among the `troubles`. ConfigError where trying again is of no use.
        """

    def poll(self, timeout: float) -> Sequence[Record]:
        """Records in offset order per partition, at most a batch of them; empty after `timeout` seconds without any."""

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        """Offsets [start, stop) behind the last records polled that hold nothing for us, since this was asked last."""

    def look(self) -> None:
        """Called instead of `poll` while nothing is to be read: keeps `lag` up to date. May raise SourceError."""

    def report(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the broker how far the store is, for lag tools only. Never raises; nothing is decided by it."""

    def troubles(self) -> Mapping[TopicPartition, Trouble]:
        """The partitions that are not read while the others are. From any thread."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records not yet read, per partition, as last seen."""

    def close(self) -> None: ...


class Store(Protocol):
    """Examples, offsets, runs and decisions; one process holds it. Raises StoreError and its children."""

    # the stream
    def next_offsets(self) -> Mapping[TopicPartition, int]:
        """The next offset to read per partition ever read. The truth about how far we are."""

    def commit(self, batch: Batch) -> None:
        """All of the batch or nothing, durable on return.

        StaleBatchError: an advance's `expected` is not where the store stands; nothing was written.
        OutcomeUnknownError: COMMIT itself raised. The store has reopened itself; read `next_offsets` to learn what became of it.
        """

    def tails(self) -> Mapping[TopicPartition, Tail]:
        """The last record below the next offset, of every partition of which it is known."""

    def amend(self, amendment: Amendment) -> None:
        """Take records out of the dead letters and quarantine and put them elsewhere: all of it or nothing, durable on return.

        StaleBatchError: one of the positions is in neither any more. ValueError: a record would end nowhere or in two places.
        OutcomeUnknownError: as for `commit`; look at the dead letters and quarantine to learn what became of it.
        """

    def tidy(self) -> None:
        """A quiet moment: do what makes the next start faster, if there is much of it. Raises as `commit` does."""

    def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """The newest first, with all the bytes that are kept."""

    def listed_letters(self, limit: int, *, reason: str | None = None) -> Sequence[ListedLetter]:
        """The newest first, all of one reason or whatever it is."""

    def quarantined(self, limit: int) -> Sequence[Quarantined]:
        """The newest first."""

    def halves(self, ids: Sequence[str]) -> Sequence[Half]:
        """Those with one of these ids, in the order stored."""

    # what a cycle reads
    def counts(self) -> StoreCounts: ...

    def coverage(self) -> Coverage:
        """Checks every offset ever taken; slow on a large store, not for each cycle."""

    def examples_after(self, seq: int, *, split: Split | None = None) -> int:
        """How many examples have a greater seq."""

    def window(
        self,
        *,
        after: int,
        up_to: int,
        limit: int,
        split: Split | None = None,
        max_lateness: timedelta | None = None,
    ) -> Sequence[StoredExample]:
        """The newest `limit` examples with after < seq <= up_to, in seq order.

        With `max_lateness` the newest of those that were ingested no more than that after they occurred.
        """

    def late_examples(self, *, after: int, up_to: int, max_lateness: timedelta) -> int:
        """How many with after < seq <= up_to were ingested later than that."""

    def snapshot(
        self,
        folder: Path,
        *,
        data_cut: int,
        recent_after: int,
        train_limit: int,
        replay_limit: int,
        holdout_limit: int,
        seed: int,
        run_id: str,
    ) -> DataManifest:
        """Write what a run trains and is judged on to `folder` as Parquet, keep in mind which it was, and say what was written.

        Columns of each: seq, id, text, label, source, occurred_at, recent (bool: seq > recent_after).
        train.parquet: the newest `train_limit` train examples in (recent_after, data_cut].
        replay.parquet: at most `replay_limit` train examples up to recent_after, drawn evenly over labels by a hash with `seed`.
        validation.parquet: validation examples, the newest `holdout_limit`.
        holdout.parquet: holdout examples: the newest `holdout_limit` recent ones and as many past ones drawn by hash with `seed`.
        Where the past is much larger than what is drawn from it, only some blocks of it, drawn by hash too, are looked at.
        """

    # runs and decisions
    def save_run(self, run: Run) -> None:
        """Insert or replace by id."""

    def runs(self, limit: int) -> Sequence[Run]:
        """The newest first."""

    def run(self, run_id: str) -> Run:
        """Raises NotFoundError."""

    def abandon_runs(self, at: datetime) -> Sequence[Run]:
        """Mark every run that is not final as ABANDONED; called once, at start. Returns them."""

    def record(self, decision: Decision) -> int:
        """Store a decision before it is acted on; returns its number, from 1 without holes."""

    def acted(self, number: int, at: datetime) -> None:
        """The decision was carried out."""

    def decisions(self, limit: int) -> Sequence[StoredDecision]:
        """The newest first."""

    def unacted(self) -> Sequence[StoredDecision]:
        """Decisions that were not carried out, or not marked so; the oldest first."""

    # small durable facts of the learner: "paused", "drift_in_a_row", ... JSON values
    def get(self, key: str) -> Any | None: ...
    def put(self, key: str, value: Any) -> None: ...

    def close(self) -> None: ...


class DriftDetector(Protocol):
    def detect(
        self, reference: Sequence[WindowRow], current: Sequence[WindowRow], tests: Sequence[DriftTest]
    ) -> Sequence[ColumnDrift]:
        """One ColumnDrift per test, in order; a column that cannot be measured is unknown and stops no other.

        Raises DriftError when nothing could be measured: the detector died, hung or gave no answer.
        """


class Scorer(Protocol):
    """Answers of a version, computed here and not by a server."""

    def predict(self, version: ModelVersion, texts: Sequence[str]) -> Sequence[Prediction]:
        """One prediction per text, in order. Raises ArtefactError."""


class Trainer(Protocol):
    """Runs the worker on a prepared run folder. One run at a time; called by one thread."""

    def expect(self, run_id: str) -> None:
        """That run begins, whose folder is being prepared: from now on until the next one `cancel` is about it."""

    def train(self, folder: Path, spec: RunSpec, on_progress: Callable[[Progress], None]) -> RunResult:
        """Blocks until the worker is gone. Raises RunError (its last words inside) or RunCancelled."""

    def check(self) -> None:
        """Raises the RunCancelled that was asked for, if any was."""

    def cancel(self, run_id: str | None = None, why: RunCancelled | None = None) -> None:
        """Ask that run to stop, None: whichever is going or expected, if any; from any thread. The first `why` counts, but what
        ends a run for good goes before what puts it off."""

    def give_room_back(self, folder: Path) -> None:
        """Remove what is large in the folder of a run that ended without a result."""


class VersionFiles(Protocol):
    """Where the files of a version lie, for those who load them. The names inside are in `daemon.core.artefact`."""

    def artefact_folder(self, version: ModelVersion) -> Path: ...
    def base_folder(self, digest: str) -> Path: ...


class Registry(Protocol):
    """Immutable versions and movable aliases. One learner writes, any number of servers read, and say what they make of it."""

    def versions(self, model: str) -> Sequence[ModelVersion]:
        """In order of number."""

    def version(self, model: str, number: int) -> ModelVersion:
        """Raises NotFoundError."""

    def aliases(self, model: str) -> Aliases:
        """Generation 0 and no names for a model never promoted."""

    def servers(self, model: str) -> Sequence[ServerReport]:
        """The newest report of each server that may write one, in order of name; also of servers that are gone."""

    def report(self, report: ServerReport) -> None:
        """Called by servers only, each for itself. Raises UnavailableError where this server may not write."""

    def withdraw(self, server: str) -> None:
        """Remove a server's report, if it is there: by the server when it stops, by the learner when it has long been silent."""

    def add(
        self, spec: RunSpec, result: RunResult, folder: Path, *, lineage: Lineage, created_at: datetime
    ) -> ModelVersion:
        """Take the run folder's artefact in as the next version. Safe to repeat: one version per run id."""

    def move(self, model: str, aliases: Aliases) -> Aliases:
        """Set the aliases if the stored generation is still `aliases.generation`; returns them with the next generation.

        Raises ConflictError when somebody moved first, NotFoundError when a named version does not exist.
        """
