from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.errors import ConfigError
from daemon.core.states import QuarantineReason, Split
from daemon.core.stream import Example, Position
from daemon.ingest.quality import LabelAges, ShareCap, TextRules, times_ahead
from daemon.policy.schema import Policy, QualityPolicy
from daemon.runtime.arrow_examples import ExampleColumns
from daemon.testing.clock import START

EXAMPLE = Example(Position("t", 0, 0), "1", "", "yes", START, START, "here", Split.TRAIN)


@pytest.mark.parametrize(
    ("policy", "text", "setting"),
    [
        (QualityPolicy(min_chars=3), "hi", "min_chars is 3"),
        (QualityPolicy(max_chars=3), "long", "max_chars is 3"),
        (QualityPolicy(must_match="[a-z]"), "12", "must_match"),
        (QualityPolicy(must_not_match="(?i)lorem ipsum"), "Lorem Ipsum dolor", "must_not_match"),
    ],
)
def test_a_text_that_is_not_as_the_policy_asks_is_found_with_the_setting(
    policy: QualityPolicy, text: str, setting: str
) -> None:
    good, bad = replace(EXAMPLE, text="abc"), replace(EXAMPLE, text=text)
    ((place, reason, detail),) = TextRules(policy).findings([good, bad])
    assert (place, reason) == (1, QuarantineReason.QUALITY)
    assert setting in detail
    assert text not in detail


def test_without_rules_nothing_is_looked_at() -> None:
    assert not TextRules(QualityPolicy()).any
    assert TextRules(QualityPolicy(min_chars=2)).any


@pytest.mark.parametrize("kind", [list, ExampleColumns.of])
def test_a_time_ahead_of_the_clock_is_found_with_the_setting(
    kind: Callable[[list[Example]], Sequence[Example]],
) -> None:
    ahead = [replace(EXAMPLE, occurred_at=START + timedelta(hours=hours)) for hours in (-9, 6, 7)]
    ((place, reason, detail),) = times_ahead(kind(ahead), timedelta(hours=6))
    assert (place, reason) == (2, QuarantineReason.FUTURE_TIME)
    assert "2026-01-05T16:00:00+00:00" in detail
    assert "records.quality.max_ahead is 6h" in detail


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({"quality": {"must_match": "(["}}, "no regular expression"),
        ({"quality": {"must_not_match": "a*"}}, "matches an empty text"),
        ({"scrub_patterns": {"order": "(?P<x"}}, "no regular expression"),
        ({"scrub_patterns": {"Not A Token": "x"}}, "pattern"),
        ({"scrub": ["name"]}, "email"),
        ({"max_source_share": "0%"}, "every example"),
        ({"new_sources": "dead_letter"}, "every record would be refused; name those that may send"),
        ({"new_sources": "dead_letter", "trusted_sources": []}, "new_sources is dead_letter"),
        ({"quality": {"max_label_share": "0%"}}, "every example"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_when_it_is_read(records: object, words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        Policy.model_validate({"records": records})


def test_a_value_has_at_most_its_share_of_the_window() -> None:
    cap = ShareCap(0.3, 10)
    assert cap.over(["a"] * 5 + ["b"]) == [3, 4]
    cap.add(["a", "a", "a", "b"])
    assert cap.over(["b", "a", "c", "b"]) == [1]


def test_what_left_the_window_counts_no_more() -> None:
    cap = ShareCap(0.5, 4)
    cap.add(["a", "a", "b", "b"])
    assert cap.over(["a"]) == [0]
    assert cap.over(["c", "a", "a", "a"]) == [3]  # the c pushes out an a, the first a the other
    cap.add(["c", "c"])
    assert cap.over(["a", "a"]) == []


def test_values_that_never_come_again_take_no_memory() -> None:
    cap = ShareCap(0.5, 4)
    for number in range(100):
        cap.add([f"source {number}"])
    assert len(cap._counts) == 4


def test_over_changes_nothing() -> None:
    cap = ShareCap(0.5, 4)
    assert cap.over(["a", "a", "a"]) == cap.over(["a", "a", "a"]) == [2]


def ages(*labels: str, window: int = 3) -> LabelAges:
    """With these stored from seq 1 on."""
    one = LabelAges(window)
    for seq, label in enumerate(labels, 1):
        one.add([label], [seq])
    return one


@pytest.mark.parametrize(
    ("stored", "coming", "new"),
    [
        ("", "ab", 0),  # an empty store knows nothing, so nothing is news
        ("aa", "bb", 0),
        ("aaa", "bba", 2),
        ("aab", "bb", 0),  # what the first window brought
        ("aaab", "bb", 2),
        ("aaabbb", "bb", 2),
        ("aaabbbb", "bb", 0),  # an example older than the newest three has it
        ("aaab", "xl", 1),  # l is listed
    ],
)
def test_a_label_is_new_until_an_example_older_than_the_window_has_it(stored: str, coming: str, new: int) -> None:
    assert ages(*stored).new_among(list(coming), {"l"}) == new


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(1, 6))
def test_which_labels_are_new_can_be_told_from_the_newest_two_windows_and_the_counts(
    stored: list[str], window: int
) -> None:
    """As after a restart."""
    grown, learnt = ages(*stored, window=window), LabelAges(window)
    first = max(0, len(stored) - 2 * window)
    learnt.add(stored[first:], range(first + 1, len(stored) + 1))
    learnt.told(Counter(stored))
    for label in "abcdef":
        assert learnt.new_among([label], ()) == grown.new_among([label], ())
