"""What every drift detector promises, over Evidently in its child and the scripted one."""

import math
import random
from collections.abc import Iterator
from datetime import timedelta

import pytest

from daemon.core.errors import DriftError
from daemon.core.ports import DriftDetector
from daemon.core.types import DriftTest, WindowRow
from daemon.drift.evidently_detector import EvidentlyDetector
from daemon.testing.detector import ScriptedDetector

LABEL = DriftTest("label", "jensenshannon", 0.15, is_p_value=False)
TEXT = DriftTest("text", "abs_text_content_drift", 0.65, is_p_value=False)
WORDS = DriftTest("word_count", "ks", 0.01, is_p_value=True)
PREDICTION = DriftTest("prediction", "chisquare", 0.01, is_p_value=True)
CONFIDENCE = DriftTest("confidence", "wasserstein", 0.4, is_p_value=False)
_CHANCE = random.Random(3)


def window(count: int, words: str, length: int, label: str) -> list[WindowRow]:
    """No champion yet: no prediction, no confidence."""
    texts = [" ".join(_CHANCE.choices(words.split(), k=_CHANCE.randint(3, length))) for _ in range(count)]
    return [WindowRow(text, _CHANCE.choice(["up", "down", label, label]), "", math.nan) for text in texts]


SHORT = window(120, "late flight number gate crew delay seat agent bag hour united miles", 6, "down")
LONG = window(100, "great band stage nobody wants home again lineup camp ticket dance desert", 14, "up")


@pytest.fixture(scope="module")
def evidently() -> Iterator[EvidentlyDetector]:
    detector = EvidentlyDetector(timeout=timedelta(minutes=2))
    yield detector
    detector.close()


@pytest.fixture(params=["evidently", "scripted"])
def detectors(request: pytest.FixtureRequest) -> tuple[DriftDetector, DriftDetector]:
    """One for windows that differ and one for windows that do not; Evidently needs no telling."""
    if request.param == "evidently":
        real = request.getfixturevalue("evidently")
        return real, real
    return (
        ScriptedDetector([{"label": 0.6, "text": 1.0, "word_count": 1e-9}]),
        ScriptedDetector([{"label": 0.0, "text": 0.5, "word_count": 1.0}]),
    )


def test_windows_that_differ_have_drifted_in_every_column(detectors: tuple[DriftDetector, DriftDetector]) -> None:
    columns = detectors[0].detect(SHORT, LONG, [WORDS, TEXT, LABEL])
    assert [column.column for column in columns] == ["word_count", "text", "label"]
    assert [column.drifted for column in columns] == [True, True, True]
    assert [(column.method, column.threshold) for column in columns] == [
        ("ks", 0.01), ("abs_text_content_drift", 0.65), ("jensenshannon", 0.15),
    ]  # fmt: skip


def test_a_window_has_not_drifted_from_itself(detectors: tuple[DriftDetector, DriftDetector]) -> None:
    columns = detectors[1].detect(SHORT, SHORT, [LABEL, TEXT, WORDS])
    assert [(column.drifted, column.error) for column in columns] == [(False, None)] * 3
    assert all(column.score is not None and math.isfinite(column.score) for column in columns)


def test_without_a_champion_its_columns_are_unknown_and_the_others_still_count(
    detectors: tuple[DriftDetector, DriftDetector],
) -> None:
    prediction, label, confidence = detectors[0].detect(SHORT, LONG, [PREDICTION, LABEL, CONFIDENCE])
    assert (label.drifted, label.error) == (True, None)
    for unknown in (prediction, confidence):
        assert (unknown.score, unknown.drifted) == (None, False)
        assert unknown.error


def test_no_tests_is_no_work(detectors: tuple[DriftDetector, DriftDetector]) -> None:
    assert list(detectors[0].detect(SHORT, LONG, [])) == []


def test_a_script_can_fail_and_recover() -> None:
    detector = ScriptedDetector([{"label": 0.6}, DriftError("the child died"), {"label": 0.0}])
    assert detector.detect(SHORT, LONG, [LABEL])[0].drifted
    with pytest.raises(DriftError, match="the child died"):
        detector.detect(SHORT, LONG, [LABEL])
    assert not detector.detect(SHORT, LONG, [LABEL])[0].drifted
    assert detector.windows == [(120, 100)] * 3
