"""Adapters and graphs on a two-layer random BERT: what is exported once, what travels with a version, what a parent hands on."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification

from daemon.core.artefact import BASE_CARD, GRAPH, LABELS, BaseCard
from daemon.core.errors import RunError
from daemon.export.adapter_files import GOLDEN_TEXTS, read_weights, write_weights
from daemon.export.onnx_exporter import base_identity, export_base
from daemon.export.parity import compare, compare_int8
from daemon.export.quantize import int8_identity, quantize_base
from daemon.policy.schema import TrainingPolicy
from daemon.serve.encoder import Encoder
from daemon.serve.ort_loader import Servable, load_servable
from daemon.tasks.classification import Encoded
from daemon.train import head
from daemon.train.finetune import Placement, Step, answer, choose_placement, finetune, rate_schedule, seed_everything
from daemon.train.peft_adapter import (
    adapter_parameters,
    attach_adapter,
    fit_rank,
    fold_scale,
    read_adapter,
    tensor_name,
    warm_start,
)
from daemon.train.transformers_base import locate

WORDS = ["[UNK]", "good", "bad", "late", "on", "time", ".", "!", "thank", "you"]
CPU = Placement("cpu", "fp32")


def pretrained(labels: int, *, seed: int) -> torch.nn.Module:
    """The encoder is always the same; only the head is drawn by `seed`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    torch.manual_seed(seed)
    model.classifier = torch.nn.Linear(16, labels)
    return model


def tiny_model(labels: int, *, seed: int, rank: int = 4, alpha: float = 8.0) -> torch.nn.Module:
    """With LoRA matrices that already do something, as after training."""
    model = attach_adapter(pretrained(labels, seed=seed), ["classifier"], rank=rank, alpha=alpha, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.normal_()
    return model


def tokenizer_json() -> str:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    text: str = tokenizer.to_str()
    return text


def logits_in_torch(model: torch.nn.Module, texts: Sequence[str] = GOLDEN_TEXTS) -> np.ndarray:
    return answer(model, Encoder(tokenizer_json().encode(), 64).encode(texts))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from a model of rank 4 with three labels."""
    folder = tmp_path_factory.mktemp("run") / "base"
    model = tiny_model(3, seed=1)
    fold_scale(model)
    adapter = adapter_parameters(model)
    export_base(folder, BaseCard("i" * 64, "tiny", "w" * 64, list(adapter), 64), model, adapter, tokenizer_json())
    return folder


def served(base: Path, folder: Path, model: torch.nn.Module, labels: Sequence[str]) -> Servable:
    write_weights(folder, read_adapter(model), labels)
    return load_servable(base, folder, max_tokens=64, threads=1)


@pytest.mark.parametrize(("rank", "labels"), [(4, "abc"), (1, "ab"), (7, "abcdefgh")])
def test_one_graph_answers_like_torch_for_any_rank_and_number_of_labels(
    rank: int, labels: str, base: Path, tmp_path: Path
) -> None:
    model = tiny_model(len(labels), seed=5, rank=rank)
    parity = compare(logits_in_torch(model), served(base, tmp_path, model, list(labels)).logits(GOLDEN_TEXTS))
    assert parity.max_abs_diff < 1e-4
    assert parity.agreement == 1.0


def test_an_int8_base_takes_any_adapter_and_differs_a_little(base: Path, tmp_path: Path) -> None:
    first = tiny_model(3, seed=1)
    card = BaseCard("i" * 64, "tiny", "w" * 64, list(adapter_parameters(first)), 64)
    examples = served(base, tmp_path / "first", first, list("abc")).encode(GOLDEN_TEXTS)
    quantize_base(base, tmp_path / "int8", card, artefact=tmp_path / "first", examples=examples)
    assert (tmp_path / "int8" / GRAPH).stat().st_size < (base / GRAPH).stat().st_size
    written = msgspec.json.decode((tmp_path / "int8" / BASE_CARD).read_bytes(), type=BaseCard)
    assert (written.precision, written.identity) == ("int8", int8_identity(card.identity))
    for rank, labels in ((4, "abc"), (7, "abcdefgh")):
        model = tiny_model(len(labels), seed=5, rank=rank)
        servable = served(tmp_path / "int8", tmp_path / labels, model, list(labels))
        logits = servable.logits(GOLDEN_TEXTS)
        alone = np.concatenate([servable.logits([text]) for text in GOLDEN_TEXTS])
        np.testing.assert_allclose(logits, alone, atol=1e-4)  # whatever else is in the batch
        expected = logits_in_torch(model)
        difference = np.abs(logits - expected).max()
        assert 1e-6 < difference < 0.2 * np.abs(expected).max()


def test_a_base_that_cannot_be_quantised_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "fp32").mkdir()
    (tmp_path / "fp32" / GRAPH).write_bytes(b"no graph")
    with pytest.raises(RunError, match=r"export\.precision"):
        card = BaseCard("i", "tiny", "w", [], 64)
        quantize_base(tmp_path / "fp32", tmp_path / "int8", card, artefact=tmp_path, examples=[[1]])


@pytest.mark.parametrize(
    ("fp32", "int8", "found"),
    [
        ([[1, 0], [0, 1], [0, 1], [1, 0]], [[1, 0], [0, 2], [3, 1], [1, 0]], (4, 0.75, 0.5, 0.75)),
        ([[1, 0]] * 3 + [[np.nan, 0]], [[1, 0]] * 4, None),
    ],
)
def test_int8_is_compared_by_answers(fp32: list[list[float]], int8: list[list[float]], found: tuple | None) -> None:
    report = compare_int8(np.array([0, 1, 1, -1]), np.array(fp32, np.float32), np.array(int8, np.float32))
    if found is None:
        assert np.isnan(report.agreement) and np.isnan(report.accuracy)
    else:
        assert (report.examples, report.agreement, report.accuracy, report.fp32_accuracy) == found


def test_parity_sees_a_model_that_is_another(base: Path, tmp_path: Path) -> None:
    servable = served(base, tmp_path, tiny_model(3, seed=5), ["a", "b", "c"])
    assert compare(logits_in_torch(tiny_model(3, seed=6)), servable.logits(GOLDEN_TEXTS)).max_abs_diff > 0.01


@pytest.mark.parametrize("rows", [0, 2])
def test_parity_of_nothing_or_of_what_is_no_number_is_no_number(rows: int) -> None:
    report = compare(np.full((rows, 3), np.nan, np.float32), np.zeros((rows, 3), np.float32))
    assert report.texts == rows
    assert np.isnan(report.max_abs_diff) and np.isnan(report.agreement)


def test_folding_the_scale_changes_neither_answers_nor_tensors() -> None:
    model = tiny_model(3, seed=2, alpha=32.0)
    before, tensors = logits_in_torch(model), read_adapter(model)
    fold_scale(model)
    np.testing.assert_allclose(logits_in_torch(model), before, atol=1e-5)
    for name, tensor in read_adapter(model).items():
        np.testing.assert_allclose(tensor, tensors[name], atol=1e-6)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (4, 32.0), (9, 8.0)])
def test_a_warm_start_answers_as_the_parent_did_whatever_rank_and_alpha_are_now(
    rank: int, alpha: float, tmp_path: Path
) -> None:
    parent = tiny_model(3, seed=2)
    write_weights(tmp_path, read_adapter(parent), ["a", "b", "c"])
    child = tiny_model(3, seed=3, rank=rank, alpha=alpha)
    warm_start(child, read_weights(tmp_path))
    np.testing.assert_allclose(logits_in_torch(child), logits_in_torch(parent), atol=1e-4)


def test_new_labels_leave_the_logits_of_the_old_ones_alone(tmp_path: Path) -> None:
    parent, child = tiny_model(3, seed=2), tiny_model(5, seed=3)
    warm_start(child, read_adapter(parent))
    logits = logits_in_torch(child)
    assert logits.shape == (len(GOLDEN_TEXTS), 5)
    np.testing.assert_allclose(logits[:, :3], logits_in_torch(parent), atol=1e-5)


def test_a_parent_of_another_shape_is_refused() -> None:
    tensors = dict(read_adapter(tiny_model(3, seed=2)))
    del tensors["bert.encoder.layer.1.attention.self.query.lora_A.weight"]
    with pytest.raises(RunError, match=r"layer\.1\.attention\.self\.query\.lora_A"):
        warm_start(tiny_model(3, seed=3), tensors)


def test_a_smaller_rank_keeps_the_strongest_directions() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 10)).astype(np.float32), rng.normal(size=(12, 6)).astype(np.float32)
    small_a, small_b = fit_rank(a, b, 3)
    assert small_a.shape == (3, 10) and small_b.shape == (12, 3)
    lost = np.linalg.norm(b @ a - small_b @ small_a)
    assert lost == pytest.approx(np.sqrt((np.linalg.svd(b @ a)[1][3:] ** 2).sum()), rel=1e-4)


def test_the_names_of_tensors_are_free_of_pefts_wrapping() -> None:
    names = list(adapter_parameters(tiny_model(2, seed=1)))
    assert "bert.encoder.layer.0.attention.self.query.lora_A.weight" in names
    assert names[-2:] == ["classifier.weight", "classifier.bias"]
    assert tensor_name("base_model.model.classifier.modules_to_save.default.weight") == "classifier.weight"


def test_a_packaged_base_is_the_shallowest_folder_with_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("model/pooling", "model", "a/b/c"):
        (tmp_path / "ships_a_model" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ships_a_model" / folder / "config.json").touch()
    (tmp_path / "ships_a_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package:ships_a_model") == str(tmp_path / "ships_a_model" / "model")
    assert locate("some/model") == "some/model"


@pytest.mark.parametrize(
    "base", ["package:no_such_package", "package:no_such_package.model", "package:", "package:json"]
)
def test_a_base_that_is_not_installed_is_named(base: str) -> None:
    with pytest.raises(RunError, match=base):
        locate(base)


def test_a_gpu_that_is_asked_for_and_not_there_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"training\.device"):
        choose_placement(policy(device="cuda"))
    assert choose_placement(policy(device="auto", precision="fp32")) == CPU


def test_the_identity_of_a_base_is_of_all_it_depends_on() -> None:
    same = {"weights_sha256": "w", "architecture": "{}", "tokenizer_json": "t", "adapter_inputs": ["a", "b"]}
    identity = base_identity(**same)
    assert identity == base_identity(**{**same, "adapter_inputs": ["b", "a"]})
    others = [{"weights_sha256": "x"}, {"architecture": "[]"}, {"tokenizer_json": "u"}, {"adapter_inputs": ["a"]}]
    assert len({identity, *(base_identity(**{**same, **other}) for other in others)}) == 5


def test_labels_are_written_as_a_list_in_the_order_of_the_logits(base: Path, tmp_path: Path) -> None:
    served(base, tmp_path, tiny_model(3, seed=1), ["über", "b", "a"])
    assert json.loads((tmp_path / LABELS).read_text(encoding="utf-8")) == ["über", "b", "a"]


# --- the loop ---


def word_examples(count: int) -> Encoded:
    """Label 1 when the text has word 2 in it, 0 when it has word 1."""
    labels = np.arange(count) % 2
    return Encoded([[3 + i % 5, 1 + int(label), 4] for i, label in enumerate(labels)], labels)


def policy(**changes: object) -> TrainingPolicy:
    return TrainingPolicy.model_validate({"epochs": 8, "learning_rate": 0.02, "batch_size": 8, **changes})


def trained(
    train: Encoded, validation: Encoded, training: TrainingPolicy, *, fresh_head: bool = False
) -> tuple[torch.nn.Module, list[Step], float]:
    seed_everything(3)
    model = attach_adapter(pretrained(2, seed=4), ["classifier"], rank=4, alpha=8, dropout=0.1)
    steps: list[Step] = []
    outcome = finetune(model, train, validation, training, CPU, seed=3, fresh_head=fresh_head, on_step=steps.append)
    assert outcome.steps == len(steps)
    return model, steps, outcome.validation_accuracy


def test_it_learns_and_keeps_the_weights_it_was_best_with() -> None:
    model, steps, accuracy = trained(word_examples(64), word_examples(32), policy())
    found = answer(model, word_examples(32).tokens).argmax(axis=1)
    assert accuracy == np.mean(found == word_examples(32).labels) == 1.0
    assert steps[0].loss > steps[-1].loss
    assert not model.training


def test_a_fresh_head_is_fitted_before_anything_else_learns() -> None:
    still = policy(epochs=1, learning_rate=1e-9, weight_decay=0)
    unbalanced = Encoded([*word_examples(64).tokens, *([[3, 1, 4]] * 64)], np.array([*(np.arange(64) % 2), *[0] * 64]))
    drawn, fitted = (trained(unbalanced, word_examples(0), still, fresh_head=fresh)[1] for fresh in (False, True))
    assert np.mean([step.loss for step in fitted]) < np.mean([step.loss for step in drawn])


def test_a_head_is_fitted_to_what_can_be_told_apart() -> None:
    chance = torch.Generator().manual_seed(1)
    features = torch.randn(60, 4, generator=chance) * 0.05  # a small scale must not matter
    labels = (features @ torch.randn(4, 3, generator=chance)).argmax(dim=1)
    layer = torch.nn.Linear(4, 3)
    head.fit(layer, features, labels)
    assert (layer(features).argmax(dim=1) == labels).float().mean() > 0.9


def test_it_stops_when_validation_gets_no_better() -> None:
    _, steps, _ = trained(word_examples(64), Encoded([[1]], np.array([-1])), policy(epochs=50, patience=1))
    assert len(steps) < 50 * 8
    assert steps[0].planned == 50 * 8


def test_without_validation_it_does_all_epochs_and_claims_no_accuracy() -> None:
    _, steps, accuracy = trained(
        word_examples(16), Encoded([], np.array([], dtype=np.int64)), policy(epochs=3, patience=1)
    )
    assert len(steps) == 6
    assert np.isnan(accuracy)


def test_one_seed_gives_one_result() -> None:
    first, _, _ = trained(word_examples(32), word_examples(8), policy(epochs=2))
    second, _, _ = trained(word_examples(32), word_examples(8), policy(epochs=2))
    for name, tensor in read_adapter(first).items():
        np.testing.assert_array_equal(tensor, read_adapter(second)[name])


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    model = tiny_model(2, seed=4)
    with torch.no_grad():
        adapter_parameters(model)["classifier.bias"].fill_(torch.nan)
    with pytest.raises(RunError, match="diverged"):
        finetune(
            model, word_examples(16), word_examples(8), policy(), CPU, seed=3, fresh_head=False, on_step=lambda _: None
        )


def test_the_learning_rate_goes_up_in_a_line_and_down_in_a_line() -> None:
    share = rate_schedule(10, 0.2)
    assert [round(share(step), 3) for step in range(10)] == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rate_schedule(1, 0.0)(0) == 1.0
