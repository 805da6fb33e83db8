"""What an operator may do to the data: look at what was put aside and decide on it, copy it, check it, forget a person."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from daemon.control.mentions import holds
from daemon.control.operations import OPERATOR
from daemon.core.errors import ConfigError, NotFoundError, RelearndError, SourceError, StaleBatchError, UsageError
from daemon.core.ports import Clock, Registry, Store
from daemon.core.states import Action, QuarantineReason, RejectReason, RunState, SkipReason
from daemon.core.stream import Amendment, DeadLetter, Position, Quarantined, Skip
from daemon.core.types import Decision
from daemon.core.upkeep import Chosen, Erasure, Keeper

log = structlog.get_logger(__name__)

T = TypeVar("T")

PAGE = 1000  # records changed in one transaction
MOST = 100_000  # records changed by one command
_POSITION = re.compile(r"(?P<topic>.+)\[(?P<partition>\d+)\]@(?P<offset>\d+)")


class Redriven(Protocol):
    """What became of dead letters, and why some could not even be looked at."""

    @property
    def amendment(self) -> Amendment: ...
    @property
    def failure(self) -> SourceError | None: ...


Redrive = Callable[[Sequence[DeadLetter]], Redriven]


@dataclass(frozen=True, slots=True)
class DataOperations:
    """Called from the control API's threads; what changes the data one at a time."""

    model: str
    store: Store
    keeper: Keeper
    registry: Registry
    clock: Clock
    policy_hash: Callable[[], str]
    redrive_letters: Redrive
    hash_of: Callable[[str], str] | None  # a person as the store knows them
    strings_of: Callable[[DeadLetter], Iterable[str]]  # what a dead letter says by its schema
    erase_run_data: Callable[[str], None]  # of a run's folder
    cancel_run: Callable[[str], None]
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
        found = self._quarantine(_named(chosen))
        return {"released": self._decide(Action.RELEASE, "quarantine", chosen, found, _released)}

    def drop_quarantined(self, chosen: Chosen) -> dict[str, int]:
        found = self._quarantine(_named(chosen))
        return {"dropped": self._decide(Action.DROP, "quarantine", chosen, found, lambda page: _dropped(_places(page)))}

    def _quarantine(self, chosen: Chosen) -> Iterator[Sequence[Quarantined]]:
        """Page after page, each once the one before is decided on."""
        for _ in range(MOST // PAGE):
            if not (found := self.keeper.find_quarantined(chosen, PAGE)):
                return
            yield found

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
        """Decode them again, with the config and the policy as they are now. Those that still fail stay.

        SourceError where brokers did not give what they had to be asked for; what could be read until then is done.
        """
        became: Counter[str] = Counter()
        failures: list[SourceError] = []

        def again(letters: Sequence[DeadLetter]) -> Amendment:
            redriven = self.redrive_letters(letters)
            amendment = redriven.amendment
            failures.extend([redriven.failure] if redriven.failure else [])
            became["examples"] += len(amendment.examples)
            became["quarantined"] += len(amendment.quarantined)
            became["skipped"] += len(amendment.skips)
            became["halves"] += len(amendment.halves)
            became["still_dead"] += len(letters) - len(amendment.positions)
            return amendment

        pages = takewhile(lambda _: not failures, self._letters(chosen))
        self._decide(Action.REDRIVE, "dead letters", chosen, pages, again)
        if failures:
            done = sum(became.values()) - became["still_dead"]
            raise SourceError(f"{failures[0]}; dead letters redriven before that: {done:,}") from failures[0]
        return {name: became[name] for name in ("examples", "quarantined", "skipped", "halves", "still_dead")}

    def drop_dead_letters(self, chosen: Chosen) -> dict[str, int]:
        found = self._letters(_named(chosen))
        dropped = self._decide(
            Action.DROP, "dead letters", chosen, found, lambda page: _dropped([letter.position for letter in page])
        )
        return {"dropped": dropped}

    def _letters(self, chosen: Chosen) -> Iterator[Sequence[DeadLetter]]:
        """Page after page: fewer than PAGE where they are large."""
        after, taken = 0, 0
        while taken < MOST and (found := self.keeper.find_dead_letters(chosen, after=after, limit=PAGE)):
            after, taken = found[-1][0], taken + len(found)
            yield [letter for _, letter in found]

    # --- deciding -------------------------------------------------------------------------------------------------

    def _decide(
        self,
        action: Action,
        of: str,
        chosen: Chosen,
        pages: Iterator[Sequence[T]],
        amendment: Callable[[Sequence[T]], Amendment],
    ) -> int:
        """Carry out what an operator decided on records put aside; says on how many. Where there are none, none is stored."""
        number, done = 0, 0
        with self.lock:
            for page in pages:
                number = number or self._record(action, of, chosen)
                self._amend(amendment(page))
                done += len(page)
            if number:
                self.store.acted(number, self.clock())
        log.info(f"operator: {action}: {done} records", action=f"operator_{action}", reason=chosen.reason, records=done)
        if chosen.position and not done:
            raise NotFoundError(f"there is nothing at {chosen.position}")
        return done

    def _record(self, action: Action, of: str, chosen: Chosen) -> int:
        named = _as_told(chosen)
        which = ", ".join(f"{name} {value}" for name, value in named.items()) or "all"
        decision = Decision(
            at=self.clock(),
            action=action,
            reasons=[f"{OPERATOR}: {of}, {which}"],
            policy_hash=self.policy_hash(),
            by=OPERATOR,
            evidence={"of": of, **named},
        )
        return self.store.record(decision)

    def _amend(self, amendment: Amendment) -> None:
        if not amendment.positions:
            return
        try:
            self.store.amend(amendment)
        except StaleBatchError as error:
            raise UsageError(f"somebody else decided on some of these meanwhile; list them again: {error}") from error

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
        """Erase a person; say what was erased, which versions were trained on them, and which older copies were left alone.

        Done when it returns.
        """
        if self.hash_of is None:
            raise ConfigError("nobody can be looked for: set kafka.fields.subject and store.subject_key_file")
        if not person:
            raise UsageError("say whom to forget")
        with self.lock:
            erasure = self.keeper.forget(self.hash_of(person), holds(person, self.strings_of), self.clock())
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
            "older_copies": self.keeper.kept_beside(),
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
        for run_id in going & set(erasure.runs):
            self.cancel_run(run_id)
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


def _named(chosen: Chosen) -> Chosen:
    """The same; raises UsageError where it means everything."""
    if chosen == Chosen():
        raise UsageError("say which: a position, a reason, a source or a label")
    return chosen


def _as_told(chosen: Chosen) -> dict[str, str]:
    return {field.name: str(value) for field in fields(chosen) if (value := getattr(chosen, field.name)) is not None}


def _released(found: Sequence[Quarantined]) -> Amendment:
    return Amendment(_places(found), examples=[one.example for one in found])


def _dropped(positions: Sequence[Position]) -> Amendment:
    skips = [Skip(at.topic, at.partition, at.offset, at.offset + 1, SkipReason.DROPPED) for at in positions]
    return Amendment(positions, skips=skips)


def _places(found: Sequence[Quarantined]) -> list[Position]:
    return [one.example.position for one in found]


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
