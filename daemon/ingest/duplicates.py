"""Which examples the store has already, in memory of a fixed size: fingerprints of the newest ones, looked up a batch at a time.

A fingerprint is made of Python's own string hashes: 64 bits each, keyed with a secret of the process (SipHash), so that nobody
can aim for a collision, and quick, because each is one call. They are never stored: after a start they are made again from
the store's newest examples, and say the same as before.

How wrong this can be: a record is dropped as a duplicate of another one by mistake when 63 bits over its id, text and label
agree in one of about three slots: once in 10^18 records. A wrong conflict needs 48 bits and the same slots: once in 10^14 records,
and then the record waits in quarantine; it is not dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from daemon.ingest.plain import plain

Prints = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

_WHOLE = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_KEY = np.uint64(0xFFFF_FFFF_FFFF_0000)  # of an entry that says which label its id or text has
_LABELS = np.uint64(0xFFFF)
_ONE = np.uint64(1)
_FIRST, _SECOND = np.uint64(0x9E37_79B9_7F4A_7C15), np.uint64(0xC2B2_AE3D_27D4_EB4F)  # odd: multiplying loses nothing


class Fingerprints(NamedTuple):
    """Of a batch, in its order. `ids` and `texts` have the label in their low 16 bits. `near` is `exact` where nobody asked."""

    places: Prints
    exact: Prints
    id_places: Prints
    ids: Prints
    text_places: Prints
    texts: Prints
    near_places: Prints
    near: Prints

    @property
    def size(self) -> int:
        return len(self.exact)

    def part(self, which: Flags) -> "Fingerprints":
        return Fingerprints(*(prints[which] for prints in self))

    def without(self, places: Iterable[int]) -> "Fingerprints":
        left = np.ones(self.size, bool)
        left[list(places)] = False
        return self.part(left)


def fingerprints(ids: Sequence[str], texts: Sequence[str], labels: Sequence[str], *, near: bool) -> Fingerprints:
    """`near` costs about 10 microseconds a text: the texts without what makes near duplicates differ."""
    of_id, of_text, of_label = _hashes(ids), _hashes(texts), _hashes(labels)
    label = of_label % _LABELS + _ONE
    places = of_id ^ (of_text >> _ONE) ^ of_label
    exact = (of_id * _FIRST + of_text * _SECOND + of_label) | _ONE
    near_places, near_prints = places, exact
    if near:
        alike = [plain(text) for text in texts]
        near_places = _hashes([f"{text}\0" for text in alike])
        near_prints = (_hashes(alike) * _FIRST + of_label) | _ONE
    return Fingerprints(
        places=places,
        exact=exact,
        id_places=of_id,
        ids=(of_id & _KEY) | label,
        text_places=of_text,
        texts=(of_text & _KEY) | label,
        near_places=near_places,
        near=near_prints,
    )


def _hashes(texts: Sequence[str]) -> Prints:
    return np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)


class _Table:
    """Open addressing with linear probing; at most half full. 0 is an empty slot."""

    def __init__(self, entries: int, key: np.uint64) -> None:
        self._slots = np.zeros(1 << max(4, (2 * entries - 1).bit_length()), np.uint64)
        self._last = len(self._slots) - 1
        self._key = key

    def find(self, places: Prints, entries: Prints) -> Prints:
        """The stored entry with the same key, or 0."""
        keys, slots = entries & self._key, self._first_slots(places)
        found = self._slots.take(slots)
        left = np.flatnonzero(((found & self._key) != keys) & (found != 0))
        keys, slots = keys[left], slots[left]
        while left.size:
            slots = (slots + 1) & self._last
            there = self._slots.take(slots)
            found[left] = there
            going = ((there & self._key) != keys) & (there != 0)
            left, keys, slots = left[going], keys[going], slots[going]
        return found

    def add(self, places: Prints, entries: Prints) -> None:
        """A key that is there stays as it is; of several with one key the first counts."""
        entries, slots = (
            entries[::-1],
            self._first_slots(places)[::-1],
        )  # written last, the first in order wins its slot
        while entries.size:
            free = self._slots.take(slots) == 0
            self._slots[slots[free]] = entries[free]
            going = ((self._slots.take(slots) ^ entries) & self._key) != 0
            entries, slots = entries[going], (slots[going] + 1) & self._last

    def _first_slots(self, places: Prints) -> Numbers:
        return (places & np.uint64(self._last)).view(np.int64)


class _Generation:
    def __init__(self, examples: int, *, near: bool) -> None:
        self.exact = _Table(examples, _WHOLE)
        self.ids = _Table(examples, _KEY)
        self.texts = _Table(examples, _KEY)
        self.near = _Table(examples, _WHOLE) if near else None

    def add(self, prints: Fingerprints) -> None:
        self.exact.add(prints.places, prints.exact)
        self.ids.add(prints.id_places, prints.ids)
        self.texts.add(prints.text_places, prints.texts)
        if self.near:
            self.near.add(prints.near_places, prints.near)


@dataclass(frozen=True, slots=True)
class Repeats:
    """Places in a batch of what the store has, or an earlier record of the batch brought."""

    duplicates: Sequence[int] = field(default_factory=list)
    of_another_label: Sequence[tuple[int, str]] = field(default_factory=list)  # and what is the same: "id" or "text"


class Seen:
    """The newest examples: at least `window` of them, at most twice as many. What it holds depends only on their seqs.

    Two generations of `window` seqs each; when the younger is full it becomes the older, and that one is forgotten.
    """

    def __init__(self, window: int, *, near: bool) -> None:
        self._window = window
        self._near = near
        self._number = 0
        self._older = self._younger = _Generation(0, near=near)

    def first_needed(self, last_seq: int) -> int:
        """With `last_seq` examples stored, those from this seq on are what it must hold."""
        return max(0, (last_seq - 1) // self._window - 1) * self._window + 1

    def add(self, seqs: Numbers, prints: Fingerprints) -> None:
        """Examples stored with these seqs, rising."""
        numbers = (seqs - 1) // self._window + 1
        for number in np.unique(numbers):
            self._turn_to(int(number))
            self._younger.add(prints.part(numbers == number))

    def _turn_to(self, number: int) -> None:
        if number == self._number:
            return
        follows = number == self._number + 1
        self._older = self._younger if follows else _Generation(0, near=self._near)
        self._younger = _Generation(self._window, near=self._near)
        self._number = number

    def repeats(self, prints: Fingerprints, *, conflicts: bool) -> Repeats:
        """What of a batch is a duplicate; with `conflicts` also what came with another label before."""
        known = self._known(prints)
        suspects = known | _repeated(prints.exact)
        of_id = of_text = np.zeros(prints.size, bool)
        if self._near:
            suspects |= _repeated(prints.near)
        if conflicts:
            of_id = self._labelled_otherwise("ids", prints.id_places, prints.ids)
            of_text = self._labelled_otherwise("texts", prints.text_places, prints.texts)
            suspects |= of_id | of_text | _of_two_labels(prints.ids) | _of_two_labels(prints.texts)
        places = np.flatnonzero(suspects)
        return _in_order(places, prints, known, of_id, of_text, conflicts=conflicts) if places.size else Repeats()

    def _known(self, prints: Fingerprints) -> Flags:
        known = np.zeros(prints.size, bool)
        for generation in (self._younger, self._older):
            known |= generation.exact.find(prints.places, prints.exact) != 0
            if generation.near:
                known |= generation.near.find(prints.near_places, prints.near) != 0
        return known

    def _labelled_otherwise(self, table: str, places: Prints, entries: Prints) -> Flags:
        """By the newest generation that knows the key."""
        found = getattr(self._younger, table).find(places, entries)
        missing = np.flatnonzero(found == 0)
        found[missing] = getattr(self._older, table).find(places[missing], entries[missing])
        otherwise: Flags = (found != 0) & (found != entries)
        return otherwise


def _repeated(entries: Prints) -> Flags:
    ordered = np.sort(entries)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(entries, twice) if twice.size else np.zeros(len(entries), bool)


def _of_two_labels(entries: Prints) -> Flags:
    """Entries whose key another entry of the batch has with another label."""
    ordered = np.sort(entries)
    differ = ((ordered[1:] & _KEY) == (ordered[:-1] & _KEY)) & (ordered[1:] != ordered[:-1])
    keys = ordered[1:][differ] & _KEY
    return np.isin(entries & _KEY, keys) if keys.size else np.zeros(len(entries), bool)


def _in_order(
    places: Places,
    prints: Fingerprints,
    known: Flags,
    of_id: Flags,
    of_text: Flags,
    *,
    conflicts: bool,
) -> Repeats:
    """The few suspects one by one: an earlier one that is kept speaks against a later one."""
    duplicates: list[int] = []
    of_another_label: list[tuple[int, str]] = []
    kept: set[int] = set()
    entry_of: dict[tuple[str, int], int] = {}
    key = int(_KEY)
    for place in places.tolist():
        contents = {int(prints.exact[place]), int(prints.near[place])}
        entries = {"id": int(prints.ids[place]), "text": int(prints.texts[place])}
        differing = [
            name
            for name, entry in entries.items()
            if {"id": of_id, "text": of_text}[name][place] or entry_of.get((name, entry & key), entry) != entry
        ]
        if known[place] or kept & contents:
            duplicates.append(place)
        elif conflicts and differing:
            of_another_label.append((place, differing[0]))
        else:
            kept |= contents
            entry_of.update({(name, entry & key): entry for name, entry in entries.items()})
    return Repeats(duplicates, of_another_label)
