"""The operator's own examples: pinned, copied to the run, scored, asked for by the floor."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.core.errors import ConfigError, RunError
from daemon.core.states import Outcome
from daemon.core.types import Prediction
from daemon.policy.gates import floor
from daemon.policy.schema import FloorGate
from daemon.runs.anchor import pinned_anchor
from daemon.train.dataset import read_anchor
from daemon.train.evaluate import evaluate
from tests.unit.test_gates import evaluation


def written(folder: Path, *examples: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


MINE = ({"text": "a", "label": "yes"}, {"text": "b", "label": "no"}, {"text": "c", "label": "no"})


def test_what_was_pinned_is_what_the_worker_reads(tmp_path: Path) -> None:
    path = written(tmp_path, *MINE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    anchor = pinned_anchor(path, None, None)
    assert anchor.sha256 == digest
    (tmp_path / "data").mkdir()
    anchor.copy_to(tmp_path / "data")
    assert [(one.text, one.label) for one in read_anchor(tmp_path / "data", digest)] == [
        ("a", "yes"),
        ("b", "no"),
        ("c", "no"),
    ]
    assert read_anchor(tmp_path / "data", "") == []
    with pytest.raises(RunError, match="was changed"):
        read_anchor(tmp_path / "data", "0" * 64)


def test_a_changed_file_is_refused_until_its_pin_is_changed(tmp_path: Path) -> None:
    path = written(tmp_path, *MINE)
    first = pinned_anchor(path, None, None)
    written(tmp_path, *MINE[:2])
    with pytest.raises(ConfigError, match="somebody changed it"):
        pinned_anchor(path, None, first.sha256)
    with pytest.raises(ConfigError, match="somebody changed it"):
        pinned_anchor(path, first.sha256, None)
    with pytest.raises(RunError, match="changed since the start"):
        first.copy_to(tmp_path)
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pinned_anchor(path, now, first.sha256).sha256 == now


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "empty"), ("{}\n", "line 1 has no text"), ('{"text": "a", "label": "b"}\nnonsense\n', "line 2 is not JSON")],
)
def test_what_is_no_anchor_is_refused_with_its_line(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        pinned_anchor(path, None, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        pinned_anchor(tmp_path / "none", None, None)


def test_the_anchor_is_a_slice_of_its_own(tmp_path: Path) -> None:
    def predict(texts: Sequence[str]) -> list[Prediction]:
        return [Prediction("no", 1.0, [0.0, 1.0]) for _ in texts]

    path = written(tmp_path, *MINE)
    (tmp_path / "anchor.jsonl").write_bytes(path.read_bytes())
    anchor = read_anchor(tmp_path, pinned_anchor(path, None, None).sha256)
    report = evaluate(predict, ["yes", "no"], anchor[:1], anchor=anchor, monotonic=lambda: 0.0)
    assert (report.examples, report.accuracy) == (1, 0.0)
    assert (report.slices["anchor"].examples, report.slices["anchor"].accuracy) == (3, pytest.approx(2 / 3))


def test_the_floor_asks_for_the_anchor_only_where_the_policy_does() -> None:
    report = evaluation(accuracy=0.9)
    asked = FloorGate(anchor_accuracy=0.5)
    assert floor(report, FloorGate()).outcome is Outcome.PASS
    assert floor(report, asked).outcome is Outcome.INCONCLUSIVE
    for accuracy, outcome in ((0.6, Outcome.PASS), (0.4, Outcome.FAIL)):
        scored = replace(
            report, slices={**report.slices, "anchor": replace(report.slices["recent"], accuracy=accuracy)}
        )
        assert floor(scored, asked).outcome is outcome
