"""The worker: one run folder in, one judged artefact out, then gone, and all memory of torch with it.

    python -m daemon.worker RUN_FOLDER

It reads the registry and the run folder and writes to the run folder only; result.json comes last, so a folder without one is
a run that did not finish. Each line of progress.jsonl is a heartbeat. Exit codes: 0 done, 75 stopped by SIGTERM, others failed,
with the reason as the last line of stderr.
"""

import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import structlog
import torch

from daemon.core.artefact import BaseCard
from daemon.core.errors import RelearndError, RunError
from daemon.core.ports import Clock
from daemon.core.states import Outcome
from daemon.core.types import (
    EvalReport,
    ModelVersion,
    ParityReport,
    Progress,
    QuantizationReport,
    RunResult,
    RunSpec,
    TrainingReport,
)
from daemon.export.adapter_files import GOLDEN_TEXTS, read_weights, write_golden, write_weights
from daemon.export.onnx_exporter import base_identity, export_base
from daemon.export.parity import compare, compare_int8
from daemon.export.quantize import int8_identity, quantize_base
from daemon.policy.gates import quantized_well
from daemon.policy.schema import Policy, TrainingPolicy
from daemon.registry.file_registry import FileRegistry
from daemon.runs.launcher import STOPPED
from daemon.runs.run_folder import RunFolder
from daemon.runtime.child import die_with_parent
from daemon.runtime.telemetry import configure_logging
from daemon.serve.encoder import Encoder
from daemon.serve.ort_loader import OrtLoader, Servable, load_servable
from daemon.tasks.classification import Encoded, label_ids, merge_labels
from daemon.train.dataset import HOLDOUT, REPLAY, TRAIN, VALIDATION, FrozenExample, read_anchor, read_examples
from daemon.train.evaluate import evaluate
from daemon.train.finetune import Step, TrainingOutcome, answer, choose_placement, finetune, seed_everything
from daemon.train.peft_adapter import adapter_parameters, attach_adapter, fold_scale, read_adapter, warm_start
from daemon.train.replay import choose_replay, replay_count
from daemon.train.transformers_base import PretrainedBase, load_base

log = structlog.get_logger(__name__)

Report = Callable[[str, int, int, str, str], None]
"""(stage, done, total, unit, detail): one line of progress."""

FP32, INT8 = "fp32", "int8"
_NEW_BASES = "bases"  # in the run folder, while it is not decided which of them is served
_PARITY_TEXTS = 50
_CALIBRATION_TEXTS = 128
_PACKAGES = ("torch", "transformers", "peft", "onnx", "onnxruntime", "tokenizers", "numpy", "relearnd")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m daemon.worker RUN_FOLDER", file=sys.stderr)
        return 64
    _prepare_process()
    run = RunFolder(Path(arguments[0]).absolute())
    try:
        run.write_result(work(run, _reporter(run, lambda: datetime.now(UTC))))
    except RelearndError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _prepare_process() -> None:
    """No core dumps: they would hold examples. Gone when the learner is gone. SIGTERM ends what is going on, at once."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(STOPPED))
    configure_logging(level="info", format="text")
    warnings.simplefilter("ignore", FutureWarning)  # vendors' notes to each other would be a killed worker's last words


def _reporter(run: RunFolder, clock: Clock) -> Report:
    def report(stage: str, done: int, total: int, unit: str, detail: str = "") -> None:
        run.append_progress(Progress(clock(), stage, done, total, unit, detail))

    return report


def work(run: RunFolder, report: Report) -> RunResult:
    """The run from its data to its result. Raises RelearndError."""
    spec, whole_policy = run.read_spec(), run.read_policy()
    policy = whole_policy.training
    registry = FileRegistry(Path(spec.registry))
    parent = None if spec.parent is None else registry.version(spec.model, spec.parent)
    torch.set_num_threads(policy.threads)
    seed_everything(spec.seed)

    report("load", 0, 1, "model", spec.base)
    data = read_data(run, spec, policy, parent)
    learner = load_model(spec, policy, registry, parent, data.labels)
    report("load", 1, 1, "model", spec.base)

    training = train(learner, data, spec, policy, report)

    report("export", 0, 1, "artefact", "")
    champion = None if parent is None else OrtLoader(registry, threads=policy.threads).load(parent)
    exported = export(run, learner, data, Exporting(spec, whole_policy, registry, parent, champion))
    servable = exported.servable
    report("export", 1, 1, "artefact", exported.precision)

    report("parity", 0, 1, "comparison", "")
    parity = compare_with_torch(learner, servable, data.holdout)
    report("parity", 1, 1, "comparison", f"largest difference {parity.max_abs_diff:.1e}")

    challenger_scores, champion_scores = judge(servable, champion, data, report)
    return RunResult(
        run_id=spec.run_id,
        labels=data.labels,
        base_digest=exported.base_digest or "",
        base_is_new=exported.base_digest is None,
        training=training,
        parity=parity,
        challenger=challenger_scores,
        champion=champion_scores,
        packages=_packages(),
        precision=exported.precision,
        quantization=exported.quantization,
    )


@dataclass(frozen=True, slots=True)
class RunData:
    """`train` is new and replayed examples together."""

    train: Sequence[FrozenExample]
    replayed: int
    validation: Sequence[FrozenExample]
    holdout: Sequence[FrozenExample]
    labels: Sequence[str]
    anchor: Sequence[FrozenExample] = ()


def read_data(run: RunFolder, spec: RunSpec, policy: TrainingPolicy, parent: ModelVersion | None) -> RunData:
    """Raises RunError when there is nothing to learn from."""
    new, past, validation, holdout = (
        read_examples(run.data, name, spec.data) for name in (TRAIN, REPLAY, VALIDATION, HOLDOUT)
    )
    count = replay_count(len(new), policy.replay_share)
    replay = [past[i] for i in choose_replay([example.label for example in past], count, seed=spec.seed)]
    train = [*new, *replay]
    labels = merge_labels(parent.labels if parent else (), spec.labels, [example.label for example in train])
    if not new or len(labels) < 2:
        raise RunError(f"nothing to learn from: {len(new)} new train examples with the labels {', '.join(labels)}")
    anchor = read_anchor(run.data, spec.anchor_sha256)
    return RunData(train, len(replay), validation[-policy.max_validation :], holdout, labels, anchor)


@dataclass(frozen=True, slots=True)
class Learner:
    """The model that learns. `bases` names its exported graphs in the registry by precision, None where there is none yet.

    `cold`: it starts from the pretrained model, with a head drawn at random, and not from a parent.
    """

    model: torch.nn.Module
    pretrained: PretrainedBase
    encoder: Encoder
    identity: str
    bases: Mapping[str, str | None]
    cold: bool


def load_model(
    spec: RunSpec, policy: TrainingPolicy, registry: FileRegistry, parent: ModelVersion | None, labels: Sequence[str]
) -> Learner:
    """The pretrained model with the parent's adapter; with a new one when the parent was made from another base."""
    pretrained = load_base(spec.base, labels=len(labels))
    if spec.max_tokens > pretrained.max_tokens:
        raise RunError(f"task.max_tokens is {spec.max_tokens}; {spec.base} reads at most {pretrained.max_tokens}")
    model = attach_adapter(
        pretrained.model,
        pretrained.fresh,
        rank=policy.lora_rank,
        alpha=policy.lora_alpha,
        dropout=policy.lora_dropout,
    )
    identity = base_identity(
        weights_sha256=pretrained.weights_sha256,
        architecture=pretrained.architecture,
        tokenizer_json=pretrained.tokenizer_json,
        adapter_inputs=list(adapter_parameters(model)),
    )
    bases = {FP32: registry.find_base(identity), INT8: registry.find_base(int8_identity(identity))}
    cold = parent is None or parent.base not in bases.values()
    if parent is not None and not cold:
        warm_start(model, read_weights(registry.artefact_folder(parent)))
    elif parent is not None:
        log.warning(
            f"version {parent.number} was made from another base; starting from {spec.base} instead",
            action="cold_start",
            parent=parent.number,
        )
    encoder = Encoder(pretrained.tokenizer_json.encode(), spec.max_tokens)
    return Learner(model, pretrained, encoder, identity, bases, cold)


def train(learner: Learner, data: RunData, spec: RunSpec, policy: TrainingPolicy, report: Report) -> TrainingReport:
    def on_step(step: Step) -> None:
        report("train", step.done, step.planned, "step", f"epoch {step.epoch}, loss {step.loss:.3f}")

    placement = choose_placement(policy)
    started = time.monotonic()
    outcome: TrainingOutcome = finetune(
        learner.model,
        _encoded(learner.encoder, data.train, data.labels),
        _encoded(learner.encoder, data.validation, data.labels),
        policy,
        placement,
        seed=spec.seed,
        fresh_head=learner.cold,
        on_step=on_step,
    )
    return TrainingReport(
        examples=len(data.train),
        replayed=data.replayed,
        steps=outcome.steps,
        epochs=outcome.epochs,
        seconds=time.monotonic() - started,
        device=placement.device,
        precision=placement.precision,
        final_loss=outcome.final_loss,
        validation_accuracy=outcome.validation_accuracy,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _encoded(encoder: Encoder, examples: Sequence[FrozenExample], labels: Sequence[str]) -> Encoded:
    texts = [example.text for example in examples]
    return Encoded(encoder.encode(texts), label_ids([example.label for example in examples], labels))


@dataclass(frozen=True, slots=True)
class Exporting:
    """What export needs beside the model. `champion` is the parent as it is served, where there is one."""

    spec: RunSpec
    policy: Policy
    registry: FileRegistry
    parent: ModelVersion | None
    champion: Servable | None


@dataclass(frozen=True, slots=True)
class Exported:
    """What a server would load. `base_digest` names its base in the registry, None when it is new and lies in the run folder."""

    servable: Servable
    precision: str
    base_digest: str | None
    quantization: QuantizationReport | None


def export(run: RunFolder, learner: Learner, data: RunData, exporting: Exporting) -> Exported:
    """Write the artefact, and the base when it is new: in int8 where the policy asks for it and the comparison allows it."""
    fold_scale(learner.model)
    write_weights(run.artefact, read_adapter(learner.model), data.labels)
    servable, precision, quantization = None, FP32, None
    if exporting.policy.export.precision == INT8:
        candidate = _load(run, learner, exporting, data, INT8)
        quantization = _compare_int8(learner, candidate, data)
        judged = quantized_well(quantization, exporting.policy.export)
        if judged.outcome is Outcome.PASS:
            servable, precision = candidate, INT8
        else:
            log.warning(f"int8 is not near enough to fp32, which is served: {judged.reason}", action="int8_refused")
    servable = servable or _load(run, learner, exporting, data, FP32)
    write_golden(run.artefact, servable.logits(GOLDEN_TEXTS))
    if learner.bases[precision] is None:
        _base_folder(run, learner, exporting, data, precision).rename(run.base)
    shutil.rmtree(run.path / _NEW_BASES, ignore_errors=True)
    return Exported(servable, precision, learner.bases[precision], quantization)


def _base_folder(run: RunFolder, learner: Learner, exporting: Exporting, data: RunData, precision: str) -> Path:
    """The registry's, or a new one beside the run's other files. An int8 base is made from the fp32 one."""
    digest = learner.bases[precision]
    if digest is not None:
        return exporting.registry.base_folder(digest)
    folder = run.path / _NEW_BASES / precision
    if not folder.exists():
        card = BaseCard(
            identity=learner.identity,
            base=exporting.spec.base,
            weights_sha256=learner.pretrained.weights_sha256,
            adapter_inputs=list(adapter_parameters(learner.model)),
            max_tokens=learner.pretrained.max_tokens,
        )
        if precision == INT8:
            texts = [example.text for example in data.train[:_CALIBRATION_TEXTS]]
            fp32 = _base_folder(run, learner, exporting, data, FP32)
            quantize_base(fp32, folder, card, artefact=run.artefact, examples=learner.encoder.encode(texts))
        else:
            adapter = adapter_parameters(learner.model)
            export_base(folder, card, learner.model, adapter, learner.pretrained.tokenizer_json)
    return folder


def _load(run: RunFolder, learner: Learner, exporting: Exporting, data: RunData, precision: str) -> Servable:
    """The champion's base is shared when the challenger runs on it too, so that it is opened once."""
    folder = _base_folder(run, learner, exporting, data, precision)
    champion, digest = exporting.champion, learner.bases[precision]
    shared = champion.base if champion and exporting.parent and exporting.parent.base == digest else None
    threads = exporting.policy.training.threads
    return load_servable(folder, run.artefact, max_tokens=exporting.spec.max_tokens, threads=threads, base=shared)


def _compare_int8(learner: Learner, candidate: Servable, data: RunData) -> QuantizationReport:
    texts = [example.text for example in data.holdout]
    truth = label_ids([example.label for example in data.holdout], data.labels)
    if not texts:
        return compare_int8(truth, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
    return compare_int8(truth, answer(learner.model, learner.encoder.encode(texts)), candidate.logits(texts))


def compare_with_torch(learner: Learner, servable: Servable, holdout: Sequence[FrozenExample]) -> ParityReport:
    texts = [*GOLDEN_TEXTS, *(example.text for example in holdout[-_PARITY_TEXTS:])]
    return compare(answer(learner.model, learner.encoder.encode(texts)), servable.logits(texts))


def judge(
    challenger: Servable, champion: Servable | None, data: RunData, report: Report
) -> tuple[EvalReport, EvalReport | None]:
    """The challenger and, where there is one, the champion, both as they are served, on the same holdout."""
    versions = 1 if champion is None else 2
    report("evaluate", 0, versions, "version", f"{len(data.holdout)} holdout examples")
    ours = _scores(challenger, data)
    report("evaluate", 1, versions, "version", f"challenger {ours.accuracy:.1%}")
    if champion is None:
        return ours, None
    theirs = _scores(champion, data)
    report("evaluate", 2, versions, "version", f"challenger {ours.accuracy:.1%}, champion {theirs.accuracy:.1%}")
    return ours, theirs


def _scores(servable: Servable, data: RunData) -> EvalReport:
    return evaluate(servable.predict, servable.labels, data.holdout, anchor=data.anchor, monotonic=time.perf_counter)


def _packages() -> Mapping[str, str]:
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in _PACKAGES}}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # all is written; torch would take seconds to tidy up what the kernel frees at once
