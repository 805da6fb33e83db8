"""Evidently in its child: what it makes of every method and of windows it cannot compute, and how the child ends."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.core.errors import DriftError
from daemon.core.types import DriftTest, WindowRow
from daemon.drift.evidently_detector import EvidentlyDetector
from daemon.policy.schema import FITTING, P_VALUE_METHODS

LABEL = DriftTest("label", "jensenshannon", 0.15, is_p_value=False)
CHILD = "daemon.drift.evidently_report"
_CHANCE = random.Random(11)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


def rows(count: int, *, words: str, length: float, down: float, sure: float) -> list[WindowRow]:
    """A window of its own: which words, how many, how often "down", how sure the champion is."""
    made = []
    for _ in range(count):
        many = [f"{word}{ending}" for word in words.split() for ending in "abcdef"]
        text = " ".join(_CHANCE.choices(many, k=max(1, round(_CHANCE.gauss(length, 3)))))
        label = "down" if _CHANCE.random() < down else "up"
        made.append(WindowRow(text, label, label, min(1.0, max(0.0, _CHANCE.gauss(sure, 0.1)))))
    return made


def airline(count: int) -> list[WindowRow]:
    return rows(count, words="late flight crew gate bag delay seat united agent hour", length=10, down=0.7, sure=0.8)


def festival(count: int) -> list[WindowRow]:
    return rows(count, words="band stage sun lineup ticket dance desert headliner camp", length=16, down=0.2, sure=0.6)


AIRLINE, LATER, FESTIVAL = airline(300), airline(250), festival(250)


@pytest.fixture(scope="module")
def detector() -> Iterator[EvidentlyDetector]:
    made = EvidentlyDetector(timeout=timedelta(minutes=2))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("column", "method"), [(column, method) for column, methods in FITTING.items() for method in methods]
)
def test_every_method_that_a_policy_may_name_tells_a_new_source_from_more_of_the_same(
    detector: EvidentlyDetector, column: str, method: str
) -> None:
    is_p_value = method in P_VALUE_METHODS
    threshold = 1e-4 if is_p_value else 0.65 if column == "text" else 0.3
    test = DriftTest(column, method, threshold, is_p_value)
    (same,) = detector.detect(AIRLINE, LATER, [test])
    (new,) = detector.detect(AIRLINE, FESTIVAL, [test])
    (back,) = detector.detect(FESTIVAL, AIRLINE, [test])
    assert [(found.drifted, found.error) for found in (same, new, back)] == [(False, None), (True, None), (True, None)]


def test_a_column_that_cannot_be_computed_stops_no_other(detector: EvidentlyDetector) -> None:
    strange = [WindowRow("  ", "", "", math.nan)] * 300
    tests = [
        DriftTest("text", "abs_text_content_drift", 0.65, is_p_value=False),
        LABEL,
        DriftTest("word_count", "anderson", 0.01, is_p_value=True),
        DriftTest("text_length", "wasserstein", 0.4, is_p_value=False),
    ]
    text, label, words, length = detector.detect(AIRLINE, strange, tests)
    assert label.error == "not computed: one of the windows has no values of this column"
    assert length.error is None
    assert length.drifted
    for found in (text, label, words):
        assert found.drifted == (found.score is not None and found.error is None)


def test_texts_that_all_use_the_same_few_words_are_unknown_and_the_reason_is_kept(detector: EvidentlyDetector) -> None:
    same = [WindowRow("late flight", "up", "up", 0.5)] * 300
    (text,) = detector.detect(same, same, [DriftTest("text", "abs_text_content_drift", 0.65, is_p_value=False)])
    assert (text.score, text.drifted) == (None, False)
    assert "no terms remain" in (text.error or "")


def test_windows_of_one_row_are_unknown_or_a_finite_score(detector: EvidentlyDetector) -> None:
    tests = [DriftTest(column, methods[0], 0.65, is_p_value=False) for column, methods in FITTING.items()]
    for found in detector.detect(AIRLINE[:1], FESTIVAL[:1], tests):
        assert (found.score is None) == (found.error is not None)
        assert found.score is None or math.isfinite(found.score)


@on_linux
def test_the_child_is_kept_replaced_when_it_died_and_let_go_when_idle() -> None:
    others = children()
    detector = EvidentlyDetector(timeout=timedelta(minutes=2), idle=timedelta(seconds=3))
    detector.detect(AIRLINE, FESTIVAL, [LABEL])
    (first,) = children() - others
    detector.detect(AIRLINE, LATER, [LABEL])
    assert children() - others == {first}
    os.kill(first, signal.SIGKILL)
    with pytest.raises(DriftError, match="ended with -9"):
        detector.detect(AIRLINE, FESTIVAL, [LABEL])
    assert detector.detect(AIRLINE, FESTIVAL, [LABEL])[0].drifted
    assert children() - others
    assert within(30, lambda: children() == others)


def interpreter(folder: Path, script: str) -> Path:
    """A stand-in for an interpreter, to see how the parent takes a child that misbehaves."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("exec sleep 60", "gave no answer within 1 s and was stopped"),
        ("echo No module named evidently >&2; exit 1", "ended with 1: No module named evidently"),
        ("read line; echo '[1]'", "is not an object"),
        ("read line; echo what", "is not JSON"),
        ("read line; printf '{}'", "ended with 0"),
    ],
)
def test_a_child_that_misbehaves_is_a_drift_error_in_time(tmp_path: Path, script: str, fault: str) -> None:
    detector = EvidentlyDetector(timeout=timedelta(seconds=1), python=interpreter(tmp_path, script))
    began = time.monotonic()
    with pytest.raises(DriftError, match=fault):
        detector.detect(AIRLINE, FESTIVAL, [LABEL])
    assert time.monotonic() - began < 10
    detector.close()


def test_an_interpreter_that_is_not_there_is_a_drift_error(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match="could not be started"):
        EvidentlyDetector(timeout=timedelta(seconds=1), python=tmp_path / "none").detect(AIRLINE, FESTIVAL, [LABEL])


def test_the_parent_loads_neither_evidently_nor_pandas() -> None:
    code = "import sys, daemon.drift.evidently_detector; print({'evidently', 'pandas', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@on_linux
def test_a_child_whose_parent_is_killed_ends() -> None:
    code = (
        "import sys, time; from datetime import timedelta; "
        "from daemon.core.types import DriftTest, WindowRow; "
        "from daemon.drift.evidently_detector import EvidentlyDetector; "
        "row = WindowRow('a b', 'up', 'up', 0.5); "
        "EvidentlyDetector(timeout=timedelta(minutes=2)).detect([row], [row], [DriftTest('label', 'psi', 0.1, False)]); "
        "print('asked', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline() == "asked\n"
    (child,) = children(parent.pid)
    parent.kill()
    parent.communicate()
    assert within(20, lambda: not Path(f"/proc/{child}").exists() or "Z" in stat(child))


def children(parent: int | None = None) -> set[int]:
    """Processes of ours that run the child's module."""
    wanted = str(parent or os.getpid())
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {number for number in numbers if stat(number)[1:2] == [wanted] and CHILD in command(number)}


def stat(pid: int) -> list[str]:
    """State and parent of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
