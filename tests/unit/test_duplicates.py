import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.ingest.duplicates import Fingerprints, Repeats, Seen, fingerprints
from daemon.ingest.plain import plain

Row = tuple[str, str, str]  # id, text, label


def prints(*rows: Row, near: bool = False) -> Fingerprints:
    return fingerprints([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], near=near)


def holding(*rows: Row, window: int = 100, near: bool = False, chunk: int = 1000) -> Seen:
    """What has stored these with seqs from 1 on, `chunk` at once."""
    seen = Seen(window, near=near)
    for first in range(0, len(rows), chunk):
        part = rows[first : first + chunk]
        seen.add(np.arange(first + 1, first + 1 + len(part)), prints(*part, near=near))
    return seen


def rows(count: int, first: int = 0) -> list[Row]:
    return [(f"id-{number}", f"text {number}", "yes") for number in range(first, first + count)]


STORED = ("1", "buy now", "spam")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (("1", "buy now", "spam"), Repeats(duplicates=[0])),
        (("1", "buy now", "ham"), Repeats(of_another_label=[(0, "id")])),
        (("1", "buy later", "ham"), Repeats(of_another_label=[(0, "id")])),
        (("2", "buy now", "ham"), Repeats(of_another_label=[(0, "text")])),
        (("2", "buy now", "spam"), Repeats()),
        (("1", "buy later", "spam"), Repeats()),
        (("2", "Buy now", "ham"), Repeats()),
    ],
)
def test_what_a_stored_example_says_about_a_new_one(row: Row, found: Repeats) -> None:
    assert holding(STORED).repeats(prints(row), conflicts=True) == found


def test_within_a_batch_the_first_that_is_kept_speaks_against_the_later_ones() -> None:
    batch = [
        ("1", "a", "yes"),
        ("2", "b", "yes"),
        ("1", "a", "yes"),  # again
        ("1", "a", "no"),
        ("3", "b", "no"),
        ("3", "c", "no"),  # the one before is not kept, so it says nothing about this id
        ("3", "c", "yes"),
    ]
    assert Seen(100, near=False).repeats(prints(*batch), conflicts=True) == Repeats(
        duplicates=[2], of_another_label=[(3, "id"), (4, "text"), (6, "id")]
    )


def test_accepted_conflicts_are_no_findings() -> None:
    found = holding(STORED).repeats(prints(("1", "buy now", "ham"), STORED), conflicts=False)
    assert found == Repeats(duplicates=[1])


def test_near_duplicates_are_duplicates_only_where_they_are_looked_for_and_of_one_label() -> None:
    alike = ("7", "BUY,  now!! https://spam.example/1 @you", "spam")
    other = ("8", "Buy now?", "ham")
    assert holding(STORED, near=True).repeats(prints(alike, other, near=True), conflicts=True) == Repeats(
        duplicates=[0]
    )
    assert holding(STORED).repeats(prints(alike, other), conflicts=True) == Repeats()
    twice = Seen(10, near=True).repeats(prints(STORED, alike, near=True), conflicts=True)
    assert twice == Repeats(duplicates=[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [("It costs 5 EUR", "it costs 1200 eur!"), ("  tab\tand\nline ", "Tab and line"), ("Straße", "STRASSE")],
)
def test_plain_texts_are_alike(one: str, other: str) -> None:
    assert plain(one) == plain(other)


def test_a_text_of_noise_alone_is_compared_as_it_is() -> None:
    assert plain("!!") != plain("??")


def test_at_least_a_window_is_remembered_and_at_most_two() -> None:
    window = 50
    for stored in (1, 49, 50, 51, 99, 100, 101, 173):
        everything = rows(stored)
        seen = holding(*everything, window=window, chunk=7)
        known = seen.repeats(prints(*everything), conflicts=True).duplicates
        assert known == list(range(seen.first_needed(stored) - 1, stored))
        assert min(stored, window) <= len(known) <= 2 * window


labels = st.sampled_from(["yes", "no"])
few = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.tuples(few, few, labels), max_size=40), st.randoms(use_true_random=False))
def test_what_is_found_depends_on_the_seqs_alone_and_not_on_how_they_were_learnt(
    stored: list[Row], rng: random.Random
) -> None:
    """Redelivery after a restart gives the same result: the memory is made again from the store."""
    window = 8
    cuts = sorted({0, len(stored), *(rng.randrange(len(stored) + 1) for _ in range(5))})
    grown = Seen(window, near=True)
    for first, last in pairwise(cuts):
        grown.add(np.arange(first + 1, last + 1), prints(*stored[first:last], near=True))
    first = grown.first_needed(len(stored))
    learnt = Seen(window, near=True)
    learnt.add(np.arange(first, len(stored) + 1), prints(*stored[first - 1 :], near=True))
    everything = [(i, t, label) for i in "abcd" for t in "abcd" for label in ("yes", "no")]
    for row in everything:
        asked = prints(row, near=True)
        assert grown.repeats(asked, conflicts=True) == learnt.repeats(asked, conflicts=True)


@given(st.lists(st.tuples(few, few, labels), max_size=30))
def test_a_batch_at_once_is_judged_as_its_records_one_after_the_other(batch: list[Row]) -> None:
    stored = [("a", "a", "yes"), ("b", "c", "no")]
    at_once = holding(*stored).repeats(prints(*batch), conflicts=True)
    seen, last = holding(*stored), len(stored)
    for place, row in enumerate(batch):
        found = seen.repeats(prints(row), conflicts=True)
        assert bool(found.duplicates) == (place in at_once.duplicates)
        assert [same for _, same in found.of_another_label] == [s for p, s in at_once.of_another_label if p == place]
        if found == Repeats():
            last += 1
            seen.add(np.array([last]), prints(row))


def test_a_full_table_still_tells_all_apart() -> None:
    stored = rows(20_000)
    seen = holding(*stored, window=20_000, chunk=3000)
    assert seen.repeats(prints(*rows(20_000, first=20_000)), conflicts=True) == Repeats()
    assert len(seen.repeats(prints(*stored), conflicts=True).duplicates) == 20_000
