"""From files to answers. The one home of onnxruntime in serving; also what judges a challenger before it is a version.

A base's graph is opened once; each version on it is an adapter that a request activates. onnxruntime does not notice damaged
weights and silently uses defaults for adapter tensors that are missing, so nothing here counts as loaded until its bytes, its
tensor names and its golden outputs were checked. Vendor errors become ArtefactError.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar, cast
from weakref import WeakValueDictionary

import msgspec
import numpy as np
import onnxruntime as ort
import structlog
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
from daemon.core.errors import ArtefactError, ConfigError, UnavailableError
from daemon.core.ports import VersionFiles
from daemon.core.types import ModelVersion, Prediction
from daemon.runtime import memory
from daemon.runtime.files import PlainFolder, VerifiedFolder
from daemon.runtime.records import decode
from daemon.serve.buckets import buckets
from daemon.serve.encoder import Cut, Encoder
from daemon.serve.onnx_tables import mapped, tables
from daemon.serve.router import Loaded, Tokens
from daemon.tasks.classification import pad

log = structlog.get_logger(__name__)

T = TypeVar("T")
Logits = NDArray[np.float32]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_IDS, _MASK = GRAPH_INPUTS
_OUTPUTS = [GRAPH_OUTPUT]
_ERRORS_ONLY = 3  # onnxruntime warns once per overridable initializer
_WARM_UP_WORDS = (1, 16, 64, 256)
_WARM_UP_TEXTS = (1, 8)
_SCORER_KEEPS = 4
_NEED = 2.0  # bytes of memory a byte of graph, as long as none was opened: the file's weights twice while it is read
_MARGIN = 1.25  # over what the largest so far took
_BATCH = 32  # larger ones are not faster on a CPU

SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Optimisers of onnxruntime 1.31 whose kernels are slower on CPUs than what they replace: without them MiniLM takes 8% (fp32) and
15% (int8) less time."""

_ENCODERS: WeakValueDictionary[tuple[bytes, int], Encoder] = WeakValueDictionary()

ort.set_default_logger_severity(_ERRORS_ONLY)


class Base:
    """A graph open for inference, with its tokenizer. Shared by every servable that runs on it."""

    def __init__(
        self, session: ort.InferenceSession, tokenizer_json: bytes, card: BaseCard, kept: Sequence[ort.OrtValue] = ()
    ) -> None:
        """`kept`: tensors that the session uses and does not own."""
        self.session = session
        self._kept = kept
        self.adapter_inputs = frozenset(item.name for item in session.get_overridable_initializers())
        self._tokenizer_json = tokenizer_json
        self.warm = False
        self._encoders: dict[int, Encoder] = {}  # keeps ours alive in `_ENCODERS`
        _check_graph(self, card)

    def encoder(self, max_tokens: int) -> Encoder:
        """Shared with other graphs of the same pretrained model: to read a tokenizer stops every thread for 20 ms."""
        if max_tokens not in self._encoders:
            key = sha256(self._tokenizer_json).digest(), max_tokens
            encoder = _ENCODERS.get(key)
            if encoder is None:
                encoder = _ENCODERS[key] = Encoder(self._tokenizer_json, max_tokens)
            self._encoders[max_tokens] = encoder
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

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encoder.encode(texts)

    def infer(self, rows: Sequence[Tokens]) -> list[Prediction]:
        """One prediction per row, in order, all in one inference. Raises ArtefactError."""
        return _predictions(self.labels, self._run(rows), rows)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One prediction per text, in order. Raises ArtefactError."""
        rows = self.encode(texts)
        return _predictions(self.labels, self._logits(rows), rows)

    def logits(self, texts: Sequence[str]) -> Logits:
        """[texts, labels], finite. Texts of like length share an inference, so that little is padded. Raises ArtefactError."""
        return self._logits(self.encode(texts))

    def _logits(self, rows: Sequence[Tokens]) -> Logits:
        logits = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for together in buckets([len(row) for row in rows], most=self.batch):
            logits[together] = self._run([rows[index] for index in together])
        return logits

    def _run(self, rows: Sequence[Tokens]) -> Logits:
        ids, mask = pad(rows)
        try:
            [logits] = self.base.session.run(_OUTPUTS, {_IDS: ids, _MASK: mask}, self.options)
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise ArtefactError(f"the graph cannot be run with this adapter: {error}") from error
        if logits.shape != (len(rows), len(self.labels)):
            raise ArtefactError(
                f"the graph gave logits of shape {logits.shape} for {len(rows)} texts and {self.labels}"
            )
        if not np.isfinite(logits).all():
            raise ArtefactError("the graph gave logits that are not finite")
        return cast(Logits, logits)

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
        memory.give_back()  # what opening and the largest shapes needed


class OrtLoader:
    """Loads versions, verified. Versions on the same base share its session for as long as any of them is in use."""

    def __init__(
        self,
        files: VersionFiles,
        *,
        threads: int,
        batch: int = _BATCH,
        device: str = "cpu",
        scratch: Path | None = None,
        available: Callable[[], int] = memory.available,
    ) -> None:
        """`scratch`: a folder for nameless copies of large tables, which otherwise are all in memory; `available`: bytes of memory
        that this process may still take. Raises ConfigError when there is no such `device`."""
        self._providers = providers(device, ort.get_available_providers())
        self._files = files
        self._threads = threads
        self._batch = batch
        self._scratch = scratch
        self._available = available
        self._bases: WeakValueDictionary[str, Base] = WeakValueDictionary()
        self._opened = 0  # bases, when last looked
        self._need = _NEED  # bytes of memory a byte of graph
        self._opening = Lock()

    def load(self, version: ModelVersion) -> Servable:
        """A servable whose bytes, tensor names and golden outputs were checked. Raises ArtefactError or UnavailableError."""
        return self._load(version)[0]

    def load_warm(self, version: ModelVersion) -> Loaded:
        """The same, warmed up: for a server."""
        servable, golden = self._load(version)
        servable.warm_up()
        return Loaded(servable, golden)

    def unloaded(self) -> None:
        """To be told when a version was let go: the memory of a base that went with it is returned to the machine."""
        if len(self._bases) < self._opened:
            self._opened = len(self._bases)
            memory.give_back()

    def _load(self, version: ModelVersion) -> tuple[Servable, Golden]:
        with VerifiedFolder(self._files.artefact_folder(version), version.digest) as artefact:
            artefact.verify_all()
            base = self._base(version.base)
            servable = _servable(base, artefact, version.max_tokens, self._batch)
            golden = _decoded(artefact, GOLDEN, Golden)
            if artefact.manifest.files[GOLDEN].sha256 != version.golden_sha256:
                raise ArtefactError(f"{artefact.path / GOLDEN} is not the one that the judge wrote down")
        if list(servable.labels) != list(version.labels):
            raise ArtefactError(f"{LABELS} says {servable.labels}, the version's record {version.labels}")
        servable.check_golden(golden)
        return servable, golden

    def _base(self, digest: str) -> Base:
        with self._opening:
            base = self._bases.get(digest)
            if base is None:
                with VerifiedFolder(self._files.base_folder(digest), digest) as folder:
                    base = self._bases[digest] = self._open(folder)
                self._opened = len(self._bases)
            return base

    def _open(self, folder: VerifiedFolder) -> Base:
        """Beside others only where there is room for it: being killed for want of memory would end them too. The first one always,
        for what it needs is an estimate."""
        entry = folder.manifest.files.get(GRAPH)
        size = entry.size if entry else 0
        need, left = int(size * self._need), self._available()
        if self._bases and need > left:
            raise UnavailableError(
                f"{folder.path} needs about {need >> 20} MiB of memory beside the base that is served, and {left >> 20} MiB are "
                "left; give this server more, or stop it and start it again"
            )
        if need > left:
            log.warning(
                f"{folder.path} may need {need >> 20} MiB of memory, and {left >> 20} MiB are left; it is opened all the same, "
                "and may be the end of this process: give it more",
                action="little_memory",
            )
        before = memory.resident()
        base = _open_base(folder, self._threads, self._providers, self._scratch)
        memory.give_back()
        self._need = max(self._need, _MARGIN * (memory.resident() - before) / max(size, 1))
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


def _predictions(labels: Sequence[str], logits: Logits, rows: Sequence[Tokens]) -> list[Prediction]:
    shares, best = softmax(logits).tolist(), logits.argmax(axis=-1).tolist()
    return [
        Prediction(labels[place], share[place], share, isinstance(row, Cut))
        for row, share, place in zip(rows, shares, best, strict=True)
    ]


def providers(device: str, available: Sequence[str]) -> list[str]:
    """onnxruntime's execution providers for `device`, cpu, cuda or auto; CPU is always behind for what CUDA cannot do.

    Raises ConfigError when cuda is asked for and onnxruntime has none.
    """
    if device == "cpu" or (device == "auto" and _CUDA not in available):
        return [_CPU]
    if _CUDA not in available:
        raise ConfigError(
            f"server.device is cuda, but this onnxruntime only has {', '.join(available)}; install onnxruntime-gpu in place of "
            "onnxruntime, or set server.device to cpu or auto"
        )
    return [_CUDA, _CPU]


def _open_base(
    folder: PlainFolder, threads: int, providers: Sequence[str] = (_CPU,), scratch: Path | None = None
) -> Base:
    card = _decoded(folder, BASE_CARD, BaseCard)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # A plan for each shape is of no use to a server, which meets all of them.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    on_cpu = providers[0] == _CPU
    # By path, because from bytes the interpreter is held for as long as it takes; and by that of the very file that was verified.
    with folder.open(GRAPH) as graph, _mapped_ort_errors(f"{folder.path / GRAPH} cannot be opened"):
        kept = _keep_on_disk(graph, scratch, options) if scratch and on_cpu else []
        path, left_out = _path_of(graph.fileno()), list(SLOW_FUSIONS) if on_cpu else []
        session = ort.InferenceSession(path, options, providers=list(providers), disabled_optimizers=left_out)
    if providers[0] not in session.get_providers():
        raise ArtefactError(
            f"onnxruntime has {providers[0]} and cannot start it, its log says why; or set server.device to cpu"
        )
    return Base(session, folder.read(TOKENIZER), card, kept)


def _keep_on_disk(graph: BinaryIO, scratch: Path, options: ort.SessionOptions) -> list[ort.OrtValue]:
    """Lets the session use large tables from mapped copies of ours. Where those cannot be kept the tables are in memory."""
    kept = []
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for table in tables(graph):
            value = ort.OrtValue.ortvalue_from_numpy(mapped(graph, table, scratch))
            options.add_initializer(table.name, value)
            kept.append(value)
    except OSError as error:
        log.warning(
            f"the largest tables of the graph are kept in memory, {scratch} cannot take them: {error}",
            action="tables_in_memory",
        )
    return kept


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
