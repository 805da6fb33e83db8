"""Loading on a real onnxruntime session: what is sound answers as it did when it was judged, everything else is refused."""

import gc
import json
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import structlog

from daemon.core.artefact import ADAPTER, GOLDEN, GRAPH, LABELS, MANIFEST, TOKENIZER, Golden
from daemon.core.errors import ArtefactError, ConfigError
from daemon.registry.file_registry import FileRegistry
from daemon.serve.onnx_tables import Table, tables
from daemon.serve.ort_loader import OrtLoader, OrtScorer, Servable, load_servable, providers, softmax
from tests.artefacts import (
    MAX_TOKENS,
    adapter_tensors,
    add_version,
    finished_run,
    write_adapter,
    write_artefact,
    write_base,
)

TEXTS = ["good", "bad service on time", "very very very late and bad flight crew", "unheard"]


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    return FileRegistry.open_for_writing(tmp_path / "registry")


def test_a_version_answers_as_its_candidate_did_whatever_else_is_in_the_batch(
    registry: FileRegistry, tmp_path: Path
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1, labels=("a", "b", "c"))
    candidate = load_servable(tmp_path / "r1" / "base", tmp_path / "r1" / "artefact", max_tokens=MAX_TOKENS, threads=1)
    served = OrtLoader(registry, threads=1).load_warm(version).predictor
    np.testing.assert_allclose(served.logits(TEXTS), candidate.logits(TEXTS), atol=1e-6)
    alone = [served.predict([text])[0] for text in TEXTS]
    for together in (served.predict(TEXTS), replace(served, batch=2).predict(TEXTS)):
        assert [prediction.label for prediction in together] == [prediction.label for prediction in alone]
        np.testing.assert_allclose([p.probabilities for p in together], [p.probabilities for p in alone], atol=1e-6)
    for prediction in alone:
        assert prediction.confidence == max(prediction.probabilities)
        assert sum(prediction.probabilities) == pytest.approx(1)


def test_long_texts_are_cut_and_the_padding_written_in_the_tokenizer_is_not_followed(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    servable = load_servable(base, write_artefact(tmp_path / "artefact", base, seed=1), max_tokens=4, threads=1)
    rows = servable.encoder.encode(["good", "good bad late on time service"])
    assert [len(row) for row in rows] == [1, 4]
    np.testing.assert_array_equal(servable.logits(["good bad late on"]), servable.logits(["good bad late on time"]))


@pytest.mark.parametrize("beside", [[], ["good"]])
def test_an_answer_says_when_there_was_more_of_its_text_than_is_read(tmp_path: Path, beside: list[str]) -> None:
    base = write_base(tmp_path / "base")
    servable = load_servable(base, write_artefact(tmp_path / "artefact", base, seed=1), max_tokens=4, threads=1)
    for text, cut in (("good bad late on", False), ("good bad late on time", True), ("late " * 1000, True)):
        texts = [text, *beside]
        for predictions in (servable.infer(servable.encode(texts)), servable.predict(texts)):
            assert [prediction.truncated for prediction in predictions] == [cut] + [False] * len(beside)


def test_a_text_in_which_there_is_nothing_to_read_is_answered_too(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    servable = load_servable(base, write_artefact(tmp_path / "artefact", base, seed=1), max_tokens=4, threads=1)
    alone, among_others = servable.logits(["\n \t"]), servable.logits(["\n \t", "good bad"])
    np.testing.assert_allclose(alone[0], among_others[0], atol=1e-6)


@pytest.mark.parametrize("scratch", ["scratch", "a file"])
def test_tables_that_are_kept_on_disk_give_the_same_answers_and_leave_no_file(
    registry: FileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: str
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    expected = OrtLoader(registry, threads=1).load(version).logits(TEXTS)
    (tmp_path / "a file").touch()  # where no copy can be kept
    found: list[Table] = []
    monkeypatch.setattr("daemon.serve.ort_loader.tables", lambda file: found.extend(tables(file, least=1)) or found)
    servable = OrtLoader(registry, threads=1, scratch=tmp_path / scratch).load(version)
    graph = registry.base_folder(version.base) / GRAPH
    os.truncate(graph, 0)
    np.testing.assert_array_equal(servable.logits(TEXTS), expected)
    assert [table.shape for table in found] == ([(13, 6)] if scratch == "scratch" else [])
    assert scratch == "a file" or not list((tmp_path / scratch).iterdir())


def test_versions_share_the_session_of_their_base_and_it_goes_with_the_last_of_them(
    registry: FileRegistry, tmp_path: Path
) -> None:
    one, two = (add_version(registry, tmp_path / f"r{seed}", seed=seed) for seed in (1, 2))
    loader = OrtLoader(registry, threads=1)
    first, second = loader.load(one), loader.load(two)
    assert first.base is second.base
    assert not np.allclose(first.logits(TEXTS), second.logits(TEXTS))
    base = weakref.ref(first.base)
    del first
    gc.collect()
    assert loader.load(one).base is base()
    del second
    gc.collect()
    assert base() is None


@pytest.mark.parametrize(("left", "said"), [(0, ["little_memory"]), (2**30, [])])
def test_the_first_graph_is_opened_however_little_memory_is_left_and_that_is_said(
    registry: FileRegistry, tmp_path: Path, left: int, said: list[str]
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    loader = OrtLoader(registry, threads=1, available=lambda: left)
    with structlog.testing.capture_logs() as logs:
        assert loader.load(version).predict(TEXTS)
    assert [line["action"] for line in logs] == said


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def make_a_link(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def make_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, make_a_link, make_a_pipe, Path.unlink])
@pytest.mark.parametrize(
    "name", [ADAPTER, LABELS, GOLDEN, MANIFEST, f"base/{GRAPH}", f"base/{TOKENIZER}", f"base/{MANIFEST}"]
)
def test_damage_is_found_before_anything_is_served(
    damage: Callable[[Path], None], name: str, registry: FileRegistry, tmp_path: Path
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    in_base = name.startswith("base/")
    folder = registry.base_folder(version.base) if in_base else registry.artefact_folder(version)
    damage(folder / name.removeprefix("base/"))
    with pytest.raises(ArtefactError):
        OrtLoader(registry, threads=1).load(version)


def test_a_linked_folder_is_refused(registry: FileRegistry, tmp_path: Path) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    make_a_link(registry.artefact_folder(version))
    with pytest.raises(ArtefactError, match="not a folder"):
        OrtLoader(registry, threads=1).load(version)


@pytest.mark.parametrize(
    ("logits", "texts", "tolerance"),
    [
        ([[9.0, 9.0]], ["good"], 1e-3),
        ([[1.0]], ["good"], 1e9),
        ([], [], 1.0),
        ([[1.0, 2.0], [1.0]], ["good", "bad"], 1e9),
        ([[1.0, 2.0]], ["good"], float("inf")),
        ([[0.0, 0.0]], ["good"], float("nan")),
        ([[float("nan"), 0.0]], ["good"], 1e9),
    ],
)
def test_golden_outputs_that_are_not_reproduced_are_refused(
    logits: list[list[float]], texts: list[str], tolerance: float, registry: FileRegistry, tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "r1", seed=1)
    golden = Golden(texts, logits, tolerance)
    content = json.dumps(msgspec.to_builtins(golden)).replace("NaN", '"nan"').replace("Infinity", '"inf"')
    (run.folder / "artefact" / GOLDEN).write_text(content)
    version = registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=run.spec.created_at)
    with pytest.raises(ArtefactError, match=r"golden"):
        OrtLoader(registry, threads=1).load(version)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("lora_B"), r"missing \['lora_B'\]"),
        (lambda tensors: tensors.update(extra=tensors["lora_A"]), r"unknown \['extra'\]"),
    ],
)
def test_an_adapter_with_other_tensors_than_its_graph_asks_for_is_refused(
    change: Callable[[dict[str, object]], object], says: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    artefact = write_artefact(tmp_path / "artefact", base, seed=1)
    tensors = adapter_tensors(2, seed=1)
    change(tensors)  # type: ignore[arg-type]
    write_adapter(artefact / ADAPTER, tensors)
    with pytest.raises(ArtefactError, match=says):
        load_servable(base, artefact, max_tokens=MAX_TOKENS, threads=1)


def test_more_labels_than_the_graph_has_logits_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    artefact = write_artefact(tmp_path / "artefact", base, seed=1)
    (artefact / LABELS).write_text('["a", "b", "c"]')
    with pytest.raises(ArtefactError, match="shape"):
        load_servable(base, artefact, max_tokens=MAX_TOKENS, threads=1).predict(["good"])


def test_weights_that_give_no_number_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    artefact = write_artefact(tmp_path / "artefact", base, seed=1)
    tensors = adapter_tensors(2, seed=1)
    tensors["head.bias"][0] = np.nan
    write_adapter(artefact / ADAPTER, tensors)
    with pytest.raises(ArtefactError, match="not finite"):
        load_servable(base, artefact, max_tokens=MAX_TOKENS, threads=1).predict(["good"])


def test_what_is_loaded_is_not_touched_by_what_happens_to_its_files_later(
    registry: FileRegistry, tmp_path: Path
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    servable = OrtLoader(registry, threads=1).load(version)
    before = servable.logits(TEXTS)
    for folder in (registry.artefact_folder(version), registry.base_folder(version.base)):
        for file in folder.iterdir():
            file.write_bytes(b"")
    np.testing.assert_array_equal(servable.logits(TEXTS), before)


def test_a_scorer_answers_for_many_versions_and_keeps_the_last_few(registry: FileRegistry, tmp_path: Path) -> None:
    versions = [add_version(registry, tmp_path / f"r{seed}", seed=seed) for seed in range(6)]
    scorer, loader = OrtScorer(registry, threads=1), OrtLoader(registry, threads=1)
    for version in [*versions, *versions[::-1]]:
        expected = loader.load(version).predict(TEXTS)
        assert list(scorer.predict(version, TEXTS)) == expected
    assert len(scorer._servables) == 4


def test_a_graph_that_fails_on_long_texts_is_refused_before_it_serves(
    registry: FileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    sound, shapes = Servable._run, set()

    def failing_on_long(servable: Servable, rows: Sequence[Sequence[int]]) -> Any:
        shapes.add((len(rows), max(map(len, rows))))
        if longest is not None and max(map(len, rows)) > longest:
            raise ArtefactError("the graph cannot be run: positions end here")
        return sound(servable, rows)

    monkeypatch.setattr(Servable, "_run", failing_on_long)
    longest: int | None = MAX_TOKENS - 1
    with pytest.raises(ArtefactError, match="positions end here"):
        OrtLoader(registry, threads=1).load_warm(version)
    longest = None
    OrtLoader(registry, threads=1).load_warm(version)
    assert shapes >= {(1, 1), (8, 1), (1, MAX_TOKENS), (8, MAX_TOKENS)}, "short and long, alone and together"


def test_softmax_survives_large_logits() -> None:
    shares = softmax(np.array([[1e4, -1e4], [0.0, 0.0]]))
    np.testing.assert_allclose(shares, [[1, 0], [0.5, 0.5]])


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_where_inference_runs_is_as_asked_or_a_clear_refusal() -> None:
    assert providers("cpu", [CUDA, CPU]) == providers("auto", [CPU]) == [CPU]
    assert providers("auto", [CUDA, CPU]) == providers("cuda", [CUDA, CPU]) == [CUDA, CPU]
    with pytest.raises(ConfigError, match=r"server\.device is cuda, but this onnxruntime only has CPU"):
        providers("cuda", [CPU])


def test_a_device_that_does_not_start_is_refused_and_not_replaced(
    registry: FileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add_version(registry, tmp_path / "r1", seed=1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(ArtefactError, match="cannot start it"):
        OrtLoader(registry, threads=1, device="cuda").load(version)
