"""The worker: one run folder in, one judged artefact out, then gone, and all memory of torch with it.

    python -m daemon.worker RUN_FOLDER

It reads the registry and the run folder and writes to the run folder only; result.json comes last, so a folder without one is
a run that did not finish. Each line of progress.jsonl is a heartbeat. Exit codes: 0 done, 75 stopped by SIGTERM, others failed,
with the reason as the last line of stderr.
"""

import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import structlog
import torch

from daemon.core.artefact import BaseCard
from daemon.core.errors import RelearndError, RunError
from daemon.core.ports import Clock
from daemon.core.types import EvalReport, ModelVersion, ParityReport, Progress, RunResult, RunSpec, TrainingReport
from daemon.export.adapter_files import GOLDEN_TEXTS, read_weights, write_golden, write_weights
from daemon.export.onnx_exporter import base_identity, export_base
from daemon.export.parity import compare
from daemon.policy.schema import TrainingPolicy
from daemon.registry.file_registry import FileRegistry
from daemon.runs.launcher import STOPPED
from daemon.runs.run_folder import RunFolder
from daemon.runtime.child import die_with_parent
from daemon.runtime.telemetry import configure_logging
from daemon.serve.encoder import Encoder
from daemon.serve.ort_loader import Base, OrtLoader, Servable, load_servable
from daemon.tasks.classification import Encoded, label_ids, merge_labels
from daemon.train.dataset import HOLDOUT, REPLAY, TRAIN, VALIDATION, FrozenExample, read_examples
from daemon.train.evaluate import evaluate
from daemon.train.finetune import Step, TrainingOutcome, answer, choose_placement, finetune, seed_everything
from daemon.train.peft_adapter import adapter_parameters, attach_adapter, fold_scale, read_adapter, warm_start
from daemon.train.replay import choose_replay, replay_count
from daemon.train.transformers_base import PretrainedBase, load_base

log = structlog.get_logger(__name__)

Report = Callable[[str, int, int, str, str], None]
"""(stage, done, total, unit, detail): one line of progress."""

_PARITY_TEXTS = 50
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
    spec, policy = run.read_spec(), run.read_policy().training
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
    shared = champion.base if champion and not learner.cold else None
    servable = export(run, learner, data.labels, spec, shared, threads=policy.threads)
    report("export", 1, 1, "artefact", "")

    report("parity", 0, 1, "comparison", "")
    parity = compare_with_torch(learner, servable, data.holdout)
    report("parity", 1, 1, "comparison", f"largest difference {parity.max_abs_diff:.1e}")

    challenger_scores, champion_scores = judge(servable, champion, data, report)
    return RunResult(
        run_id=spec.run_id,
        labels=data.labels,
        base_digest=learner.base_digest or "",
        base_is_new=learner.base_digest is None,
        training=training,
        parity=parity,
        challenger=challenger_scores,
        champion=champion_scores,
        packages=_packages(),
    )


@dataclass(frozen=True, slots=True)
class RunData:
    """`train` is new and replayed examples together."""

    train: Sequence[FrozenExample]
    replayed: int
    validation: Sequence[FrozenExample]
    holdout: Sequence[FrozenExample]
    labels: Sequence[str]


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
    return RunData(train, len(replay), validation[-policy.max_validation :], holdout, labels)


@dataclass(frozen=True, slots=True)
class Learner:
    """The model that learns. `base_digest` names its exported graph in the registry, None when there is none yet.

    `cold`: it starts from the pretrained model, with a head drawn at random, and not from a parent.
    """

    model: torch.nn.Module
    pretrained: PretrainedBase
    encoder: Encoder
    identity: str
    base_digest: str | None
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
    base_digest = registry.find_base(identity)
    cold = parent is None or parent.base != base_digest
    if parent is not None and not cold:
        warm_start(model, read_weights(registry.artefact_folder(parent)))
    elif parent is not None:
        log.warning(
            f"version {parent.number} was made from another base; starting from {spec.base} instead",
            action="cold_start",
            parent=parent.number,
        )
    encoder = Encoder(pretrained.tokenizer_json.encode(), spec.max_tokens)
    return Learner(model, pretrained, encoder, identity, base_digest, cold)


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


def export(
    run: RunFolder, learner: Learner, labels: Sequence[str], spec: RunSpec, shared: Base | None, *, threads: int
) -> Servable:
    """Write the artefact, and the base when it is new; returns what a server would load from them.

    `shared`: the champion's base when the challenger runs on it too, so that it is opened once.
    """
    fold_scale(learner.model)
    if learner.base_digest is None:
        _export_base(run.base, learner, spec)
    write_weights(run.artefact, read_adapter(learner.model), labels)
    base = (
        run.base if learner.base_digest is None else FileRegistry(Path(spec.registry)).base_folder(learner.base_digest)
    )
    servable = load_servable(base, run.artefact, max_tokens=spec.max_tokens, threads=threads, base=shared)
    write_golden(run.artefact, servable.logits(GOLDEN_TEXTS))
    return servable


def _export_base(folder: Path, learner: Learner, spec: RunSpec) -> None:
    adapter = adapter_parameters(learner.model)
    card = BaseCard(
        identity=learner.identity,
        base=spec.base,
        weights_sha256=learner.pretrained.weights_sha256,
        adapter_inputs=list(adapter),
        max_tokens=learner.pretrained.max_tokens,
    )
    export_base(folder, card, learner.model, adapter, learner.pretrained.tokenizer_json)


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
    return evaluate(servable.predict, servable.labels, data.holdout, monotonic=time.perf_counter)


def _packages() -> Mapping[str, str]:
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in _PACKAGES}}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # all is written; torch would take seconds to tidy up what the kernel frees at once
