"""What an operator may do to the data: look at what was put aside and decide on it, copy it, check it, forget a person."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from daemon.core.errors import ConfigError, NotFoundError, RelearndError, StaleBatchError, UsageError
from daemon.core.ports import Clock, Registry, Store
from daemon.core.states import QuarantineReason, RejectReason, RunState, SkipReason
from daemon.core.stream import Amendment, DeadLetter, Position, Quarantined, Skip
from daemon.core.upkeep import Chosen, Erasure, Keeper

log = structlog.get_logger(__name__)

PAGE = 1000  # records changed in one transaction
MOST = 100_000  # records changed by one command
_POSITION = re.compile(r"(?P<topic>.+)\[(?P<partition>\d+)\]@(?P<offset>\d+)")

Redrive = Callable[[Sequence[DeadLetter]], Amendment]


def holds(person: str) -> Callable[[DeadLetter], bool]:
    """Whether a dead letter's bytes hold a person's name as a word of its own, as it is or as JSON escapes it."""
    spellings = {person.encode(), json.dumps(person)[1:-1].encode()}
    word = re.compile(rb"(?<![0-9A-Za-z])(?:" + b"|".join(map(re.escape, spellings)) + rb")(?![0-9A-Za-z])")

    def found(letter: DeadLetter) -> bool:
        return any(part is not None and word.search(part) is not None for part in (letter.value, letter.key))

    return found


@dataclass(frozen=True, slots=True)
class DataOperations:
    """Called from the control API's threads; what changes the data one at a time."""

    model: str
    store: Store
    keeper: Keeper
    registry: Registry
    clock: Clock
    redrive_letters: Redrive
    hash_of: Callable[[str], str] | None  # a person as the store knows them
    erase_run_data: Callable[[str], None]  # of a run's folder
    cancel_run: Callable[[], None]
    forgotten: Callable[[], None]  # told after each person
    lock: threading.Lock

    # --- quarantine -----------------------------------------------------------------------------------------------

    def quarantined(self, chosen: Chosen, limit: int) -> dict[str, Any]:
        counts = self.store.counts()
        return {
            "total": counts.quarantined,
            "by_reason": counts.quarantined_by_reason,
            "quarantined": [_shown(one) for one in self.keeper.find_quarantined(chosen, limit)],
        }

    def release(self, chosen: Chosen) -> dict[str, int]:
        """Take them as examples, as they are: nothing is checked again."""
        return {"released": self._decide(chosen, lambda found: Amendment(_places(found), examples=_examples(found)))}

    def drop_quarantined(self, chosen: Chosen) -> dict[str, int]:
        return {"dropped": self._decide(chosen, lambda found: _dropped(_places(found)))}

    def _decide(self, chosen: Chosen, amendment: Callable[[Sequence[Quarantined]], Amendment]) -> int:
        _refuse_everything(chosen)
        done = 0
        with self.lock:
            while done < MOST and (found := self.keeper.find_quarantined(chosen, PAGE)):
                self._amend(amendment(found))
                done += len(found)
        return self._told("quarantine", chosen, done)

    # --- dead letters ---------------------------------------------------------------------------------------------

    def dead_letter(self, position: Position) -> dict[str, Any]:
        """One whole, its bytes as text as far as they are text."""
        for _, letter in self.keeper.find_dead_letters(Chosen(position), after=0, limit=1):
            return {
                "position": str(letter.position),
                "reason": letter.reason,
                "detail": letter.detail,
                "rejected_at": letter.rejected_at,
                "key": _text(letter.key),
                "value": _text(letter.value),
            }
        raise NotFoundError(f"there is no dead letter at {position}; see: relearnd dead-letters list")

    def redrive(self, chosen: Chosen) -> dict[str, Any]:
        """Decode them again, with the config and the policy as they are now. Those that still fail stay."""
        became: Counter[str] = Counter()
        with self.lock:
            for letters in self._pages(chosen):
                amendment = self.redrive_letters(letters)
                self._amend(amendment)
                became["examples"] += len(amendment.examples)
                became["quarantined"] += len(amendment.quarantined)
                became["skipped"] += len(amendment.skips)
                became["halves"] += len(amendment.halves)
                became["still_dead"] += len(letters) - len(amendment.positions)
        self._told("redrive", chosen, became.total())
        return {name: became[name] for name in ("examples", "quarantined", "skipped", "halves", "still_dead")}

    def drop_dead_letters(self, chosen: Chosen) -> dict[str, int]:
        _refuse_everything(chosen)
        with self.lock:
            done = 0
            for letters in self._pages(chosen):
                self._amend(_dropped([letter.position for letter in letters]))
                done += len(letters)
        return {"dropped": self._told("drop", chosen, done)}

    def _pages(self, chosen: Chosen) -> Iterator[Sequence[DeadLetter]]:
        after = 0
        for _ in range(MOST // PAGE):
            found = self.keeper.find_dead_letters(chosen, after=after, limit=PAGE)
            if not found:
                return
            after = found[-1][0]
            yield [letter for _, letter in found]

    def _amend(self, amendment: Amendment) -> None:
        if not amendment.positions:
            return
        try:
            self.store.amend(amendment)
        except StaleBatchError as error:
            raise UsageError(f"somebody else decided on some of these meanwhile; list them again: {error}") from error

    @staticmethod
    def _told(what: str, chosen: Chosen, count: int) -> int:
        log.info(f"operator: {what}: {count} records", action=f"operator_{what}", reason=chosen.reason, records=count)
        if chosen.position and not count:
            raise NotFoundError(f"there is nothing at {chosen.position}")
        return count

    # --- copies and checks ----------------------------------------------------------------------------------------

    def back_up(self, folder: Path) -> Any:
        with self.lock:
            backup = self.keeper.back_up(_absolute(folder), self.clock())
        log.info(f"backed up to {backup.folder}", action="backed_up", bytes=backup.size)
        return backup

    def export(self, folder: Path, form: str) -> dict[str, Any]:
        with self.lock:
            files = self.keeper.export(_absolute(folder), form)
        return {"files": [str(file) for file in files]}

    def examine(self) -> dict[str, Any]:
        return {"findings": self.keeper.examine()}

    def run_data(self, run_id: str) -> Any:
        self.store.run(run_id)
        data = self.keeper.run_data(run_id)
        if data is None:
            raise NotFoundError(f"run {run_id} was given no data, or the store does not remember it")
        return data

    # --- forgetting -----------------------------------------------------------------------------------------------

    def forget(self, person: str) -> dict[str, Any]:
        """Erase a person and say what was erased and which versions were trained on them. Done when it returns."""
        if self.hash_of is None:
            raise ConfigError("nobody can be looked for: set kafka.fields.subject and store.subject_key_file")
        if not person:
            raise UsageError("say whom to forget")
        with self.lock:
            erasure = self.keeper.forget(self.hash_of(person), holds(person), self.clock())
            self._finish(erasure)
        return {
            "erased": {
                "examples": erasure.examples,
                "dead_letters": erasure.dead_letters,
                "quarantined": erasure.quarantined,
                "halves": erasure.halves,
            },
            "runs": erasure.runs,
            "versions": self.trained_on(erasure.runs),
        }

    def finish_erasures(self) -> None:
        """What a stop or a failure has interrupted."""
        if not self.keeper.unfinished_erasures():
            return
        with self.lock:  # then the one that is going is finished, and not among them
            for erasure in self.keeper.unfinished_erasures():
                log.warning(f"finishing erasure {erasure.number}", action="erasure_resumed", erasure=erasure.number)
                self._finish(erasure)

    def trained_on(self, runs: Sequence[str]) -> list[int]:
        """The versions of these runs, and those that grew out of one of them."""
        touched: set[int] = set()
        for version in self.registry.versions(self.model):
            if version.lineage.run_id in runs or version.lineage.parent in touched:
                touched.add(version.number)
        return sorted(touched)

    def _finish(self, erasure: Erasure) -> None:
        going = {run.id for run in self.store.runs(1) if run.state in (RunState.TRAINING, RunState.JUDGING)}
        if going & set(erasure.runs):
            self.cancel_run()
        for run_id in erasure.runs:
            self.erase_run_data(run_id)
        self.keeper.finish_erasure(erasure.number, self.clock())
        self.forgotten()
        log.info(
            f"erasure {erasure.number} is done", action="erased", erasure=erasure.number, examples=erasure.examples
        )


def position_of(text: str) -> Position:
    """As positions are shown: topic[partition]@offset."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise UsageError(f"a position is written topic[partition]@offset; got {text!r}")
    return Position(found["topic"], int(found["partition"]), int(found["offset"]))


def known_reason(text: str | None) -> str | None:
    """Raises UsageError for a reason that nothing is ever given."""
    known = [*RejectReason, *QuarantineReason]
    if text is not None and text not in known:
        raise UsageError(f"there is no reason {text!r}; there are {', '.join(sorted(set(known)))}")
    return text


def _refuse_everything(chosen: Chosen) -> None:
    if chosen == Chosen():
        raise UsageError("say which: a position, a reason, a source or a label")


def _dropped(positions: Sequence[Position]) -> Amendment:
    skips = [Skip(at.topic, at.partition, at.offset, at.offset + 1, SkipReason.DROPPED) for at in positions]
    return Amendment(positions, skips=skips)


def _places(found: Sequence[Quarantined]) -> list[Position]:
    return [one.example.position for one in found]


def _examples(found: Sequence[Quarantined]) -> list[Any]:
    return [one.example for one in found]


def _shown(one: Quarantined) -> dict[str, Any]:
    example = one.example
    return {
        "position": str(example.position),
        "reason": one.reason,
        "detail": one.detail,
        "id": example.id,
        "label": example.label,
        "source": example.source,
        "text": example.text,
        "ingested_at": example.ingested_at,
    }


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode(errors="backslashreplace")


def _absolute(folder: Path) -> Path:
    if not folder.is_absolute():
        raise RelearndError(f"name the folder from the root on; got {folder}")
    return folder
