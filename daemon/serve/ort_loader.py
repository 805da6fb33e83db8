"""From files to answers. The one home of onnxruntime in serving; also what judges a challenger before it is a version.

A base's graph is opened once; each version on it is an adapter that a request activates. onnxruntime does not notice damaged
weights and silently uses defaults for adapter tensors that are missing, so nothing here counts as loaded until its bytes, its
tensor names and its golden outputs were checked. Vendor errors become ArtefactError.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from daemon.core.artefact import (
    ADAPTER,
    BASE_CARD,
    GOLDEN,
    GRAPH,
    GRAPH_INPUTS,
    GRAPH_OUTPUT,
    LABELS,
    TOKENIZER,
    BaseCard,
    Golden,
)
from daemon.core.errors import ArtefactError
from daemon.core.ports import VersionFiles
from daemon.core.types import ModelVersion, Prediction
from daemon.runtime.files import PlainFolder, VerifiedFolder
from daemon.runtime.records import decode
from daemon.serve.encoder import Encoder
from daemon.tasks.classification import ordered_batches, pad

T = TypeVar("T")
Logits = NDArray[np.float32]

_ERRORS_ONLY = 3  # onnxruntime warns once per overridable initializer
_WARM_UP_WORDS = (1, 16, 64, 256)
_WARM_UP_TEXTS = (1, 8)
_SCORER_KEEPS = 4
_BATCH = 32  # larger ones are not faster on a CPU

ort.set_default_logger_severity(_ERRORS_ONLY)


class Base:
    """A graph open for inference, with its tokenizer. Shared by every servable that runs on it."""

    def __init__(self, session: ort.InferenceSession, tokenizer_json: bytes, card: BaseCard) -> None:
        self.session = session
        self.adapter_inputs = frozenset(item.name for item in session.get_overridable_initializers())
        self._tokenizer_json = tokenizer_json
        self.warm = False
        self._encoders: dict[int, Encoder] = {}
        _check_graph(self, card)

    def encoder(self, max_tokens: int) -> Encoder:
        if max_tokens not in self._encoders:
            self._encoders[max_tokens] = Encoder(self._tokenizer_json, max_tokens)
        return self._encoders[max_tokens]


@dataclass(frozen=True, slots=True)
class Servable:
    """An adapter on its base, ready to answer. Safe from any thread; the adapter lives as long as this does."""

    labels: Sequence[str]
    base: Base
    encoder: Encoder
    adapter: ort.LoraAdapter
    options: ort.RunOptions
    batch: int  # most texts in one inference

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One prediction per text, in order. Raises ArtefactError."""
        return [_prediction(self.labels, row) for row in softmax(self.logits(texts))]

    def logits(self, texts: Sequence[str]) -> Logits:
        """[texts, labels], finite. Texts of like length share an inference, so that little is padded. Raises ArtefactError."""
        rows = self.encoder.encode(texts)
        logits = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for together in ordered_batches([len(row) for row in rows], self.batch):
            logits[together] = self._infer([rows[index] for index in together])
        return logits

    def _infer(self, rows: Sequence[Sequence[int]]) -> Logits:
        ids, mask = pad(rows)
        with _mapped_ort_errors("the graph cannot be run with this adapter"):
            logits: Logits = self.base.session.run(
                [GRAPH_OUTPUT], dict(zip(GRAPH_INPUTS, (ids, mask), strict=True)), self.options
            )[0]
        if logits.shape != (len(rows), len(self.labels)):
            raise ArtefactError(
                f"the graph gave logits of shape {logits.shape} for {len(rows)} texts and {self.labels}"
            )
        if not np.isfinite(logits).all():
            raise ArtefactError("the graph gave logits that are not finite")
        return logits

    def check_golden(self, golden: Golden) -> None:
        """Raises ArtefactError unless the logits are within the golden tolerance of those written down."""
        widths = [len(row) for row in golden.logits]
        if not golden.texts or widths != [len(self.labels)] * len(golden.texts):
            raise ArtefactError(
                f"{GOLDEN} holds rows of {widths} logits for {len(golden.texts)} texts and {self.labels}"
            )
        difference = float(np.abs(self.logits(golden.texts) - np.asarray(golden.logits, dtype=np.float64)).max())
        if not difference <= golden.tolerance < math.inf:  # NaN fails too
            raise ArtefactError(
                f"golden outputs are not reproduced: largest difference {difference:.3g}, tolerance {golden.tolerance:.3g}"
            )

    def warm_up(self) -> None:
        """Short and long, alone and together, once per base: the first requests after a switch find everything allocated.

        What is particular to this adapter has run already, on the golden texts.
        """
        if self.base.warm:
            return
        for words in _WARM_UP_WORDS:
            for texts in _WARM_UP_TEXTS:
                self.logits(["warm " * words] * texts)
        self.base.warm = True


class OrtLoader:
    """Loads versions, verified. Versions on the same base share its session for as long as any of them is in use."""

    def __init__(self, files: VersionFiles, *, threads: int, batch: int = _BATCH) -> None:
        self._files = files
        self._threads = threads
        self._batch = batch
        self._bases: WeakValueDictionary[str, Base] = WeakValueDictionary()
        self._opening = Lock()

    def load(self, version: ModelVersion) -> Servable:
        """A servable whose bytes, tensor names and golden outputs were checked. Raises ArtefactError."""
        with VerifiedFolder(self._files.artefact_folder(version), version.digest) as artefact:
            artefact.verify_all()
            base = self._base(version.base)
            servable = _servable(base, artefact, version.max_tokens, self._batch)
            golden = _decoded(artefact, GOLDEN, Golden)
        if list(servable.labels) != list(version.labels):
            raise ArtefactError(f"{LABELS} says {servable.labels}, the version's record {version.labels}")
        servable.check_golden(golden)
        return servable

    def load_warm(self, version: ModelVersion) -> Servable:
        """The same, warmed up: for a server."""
        servable = self.load(version)
        servable.warm_up()
        return servable

    def _base(self, digest: str) -> Base:
        with self._opening:
            base = self._bases.get(digest)
            if base is None:
                with VerifiedFolder(self._files.base_folder(digest), digest) as folder:
                    base = self._bases[digest] = _open_base(folder, self._threads)
            return base


class OrtScorer:
    """Implements `ports.Scorer` for the learner and the worker; keeps the versions used last."""

    def __init__(self, files: VersionFiles, *, threads: int) -> None:
        self._loader = OrtLoader(files, threads=threads)
        self._servables: OrderedDict[str, Servable] = OrderedDict()
        self._lock = Lock()

    def predict(self, version: ModelVersion, texts: Sequence[str]) -> list[Prediction]:
        return self._servable(version).predict(texts)

    def _servable(self, version: ModelVersion) -> Servable:
        with self._lock:
            servable = self._servables.pop(version.digest, None) or self._loader.load(version)
            self._servables[version.digest] = servable
            if len(self._servables) > _SCORER_KEEPS:
                self._servables.popitem(last=False)
            return servable


def load_servable(
    base_folder: Path, artefact_folder: Path, *, max_tokens: int, threads: int, base: Base | None = None
) -> Servable:
    """A candidate straight from the folders it was exported to: neither manifest nor golden outputs are there to check yet.

    `base`: the `.base` of another servable on the same graph, to share its session. Raises ArtefactError.
    """
    if base is None:
        with PlainFolder(base_folder) as folder:
            base = _open_base(folder, threads)
    with PlainFolder(artefact_folder) as artefact:
        return _servable(base, artefact, max_tokens, _BATCH)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, without overflow."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _prediction(labels: Sequence[str], probabilities: NDArray[np.float64]) -> Prediction:
    best = int(probabilities.argmax())
    return Prediction(labels[best], float(probabilities[best]), probabilities.tolist())


def _open_base(folder: PlainFolder, threads: int) -> Base:
    card = _decoded(folder, BASE_CARD, BaseCard)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # By path, because from bytes the interpreter is held for as long as it takes; and by that of the very file that was verified.
    with folder.open(GRAPH) as graph, _mapped_ort_errors(f"{folder.path / GRAPH} cannot be opened"):
        session = ort.InferenceSession(_path_of(graph.fileno()), options, providers=["CPUExecutionProvider"])
    return Base(session, folder.read(TOKENIZER), card)


def _servable(base: Base, artefact: PlainFolder, max_tokens: int, batch: int) -> Servable:
    labels = _decoded(artefact, LABELS, list[str])
    if len(set(labels)) != len(labels) or not labels:
        raise ArtefactError(f"{artefact.path / LABELS} must hold distinct labels; it says {labels}")
    adapter, names = _load_adapter(artefact)
    if names != base.adapter_inputs:
        raise ArtefactError(
            f"{artefact.path / ADAPTER} does not fit its base: missing {sorted(base.adapter_inputs - names)}, "
            f"unknown {sorted(names - base.adapter_inputs)}"
        )
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    return Servable(tuple(labels), base, base.encoder(max_tokens), adapter, options, batch)


def _load_adapter(artefact: PlainFolder) -> tuple[ort.LoraAdapter, frozenset[str]]:
    """The adapter and the names of its tensors, from a private copy: onnxruntime maps the file into memory and keeps it so."""
    with _in_memory(artefact.read(ADAPTER)) as path, _mapped_ort_errors(f"{artefact.path / ADAPTER} cannot be loaded"):
        names = frozenset(ort.AdapterFormat.read_adapter(path).get_parameters())
        adapter = ort.LoraAdapter()
        adapter.Load(path)
    return adapter, names


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of an anonymous file that nobody else can change."""
    descriptor = os.memfd_create("relearnd")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield _path_of(descriptor)
    finally:
        os.close(descriptor)


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _check_graph(base: Base, card: BaseCard) -> None:
    inputs = sorted(item.name for item in base.session.get_inputs())
    outputs = [item.name for item in base.session.get_outputs()]
    if inputs != sorted(GRAPH_INPUTS) or GRAPH_OUTPUT not in outputs:
        raise ArtefactError(
            f"{GRAPH} takes {inputs} and gives {outputs}; asked for are {GRAPH_INPUTS} and {GRAPH_OUTPUT}"
        )
    if base.adapter_inputs != frozenset(card.adapter_inputs):
        raise ArtefactError(f"{GRAPH} and {BASE_CARD} disagree about the adapter's tensors")


def _decoded(folder: PlainFolder, name: str, kind: type[T]) -> T:
    try:
        return decode(folder.read(name), kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ArtefactError(f"{folder.path / name} cannot be read: {error}") from error


@contextmanager
def _mapped_ort_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors share no base class but Exception
        raise ArtefactError(f"{what}: {error}") from error
