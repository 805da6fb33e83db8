from collections import Counter

from daemon.config import Splits
from daemon.core.states import Split
from daemon.ingest.splits import split_for

IDS = [f"example-{number}" for number in range(20_000)]


def test_an_id_keeps_its_split_for_ever() -> None:
    """Golden values: if these change, examples that were held out get trained on."""
    expected = {"1": Split.TRAIN, "ü": Split.TRAIN, "2": Split.HOLDOUT, "e": Split.HOLDOUT, "23": Split.VALIDATION}
    assert {example_id: split_for(example_id, "", Splits()) for example_id in expected} == expected


def test_splits_get_their_shares() -> None:
    found = Counter(split_for(example_id, "", Splits(validation=0.1, holdout=0.2)) for example_id in IDS)
    assert abs(found[Split.HOLDOUT] / len(IDS) - 0.2) < 0.01
    assert abs(found[Split.VALIDATION] / len(IDS) - 0.1) < 0.01


def test_a_larger_holdout_keeps_what_was_held_out() -> None:
    small, large = Splits(holdout=0.1), Splits(holdout=0.2)
    held_out = [example_id for example_id in IDS if split_for(example_id, "", small) == Split.HOLDOUT]
    assert held_out
    assert {split_for(example_id, "", large) for example_id in held_out} == {Split.HOLDOUT}


def test_without_validation_nothing_is_validation() -> None:
    assert Split.VALIDATION not in {split_for(example_id, "", Splits(validation=0.0)) for example_id in IDS}


def test_by_text_near_duplicates_share_a_split_whatever_their_ids() -> None:
    by_text = Splits(key="text")
    variants = ["Where is parcel 17?", "where is  PARCEL 4711", "@you Where is parcel 1! https://x.example/1"]
    assert len({split_for(example_id, text, by_text) for example_id in IDS[:50] for text in variants}) == 1
    assert len({split_for(example_id, variants[0], Splits()) for example_id in IDS[:50]}) > 1
    assert len({split_for("one id", f"text {'x' * number}", by_text) for number in range(50)}) > 1
