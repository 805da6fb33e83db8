"""The registry as a folder. The layout is known here only:

    bases/<digest>/                       a graph and its tokenizer, named by the sha256 of its MANIFEST.json
    versions/<digest>/                    the files of a version, named likewise
    models/<name>/versions/<number>.json  ModelVersion, never changed
    models/<name>/aliases.json            Aliases, replaced whole
    servers/<server>.json                 ServerReport, replaced whole by its server: all that servers write, where they may

Everything is written under a temporary name on the same file system, fsynced and renamed, a version's record last: readers take
no lock and never see half of anything. Writers hold one lock; what a killed writer left is removed when the next one starts.
"""

import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import structlog

from daemon.core.artefact import ADAPTER, BASE_CARD, GOLDEN, GRAPH, LABELS, MANIFEST, TOKENIZER, WEIGHTS, BaseCard
from daemon.core.errors import ArtefactError, ConflictError, NotFoundError, UnavailableError, UsageError
from daemon.core.states import Alias
from daemon.core.types import Aliases, Lineage, ModelVersion, RunResult, RunSpec, ServerReport
from daemon.runtime.files import (
    FileEntry,
    Manifest,
    PlainFolder,
    VerifiedFolder,
    copy_durably,
    is_digest,
    locked,
    sync_folder,
    write_durably,
    write_whole,
)
from daemon.runtime.records import decode, encode

log = structlog.get_logger(__name__)

T = TypeVar("T")

_TEMPORARY = ".tmp-"
_BASE_FILES = (GRAPH, TOKENIZER, BASE_CARD)
_VERSION_FILES = (ADAPTER, WEIGHTS, LABELS, GOLDEN)
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_RECORD_NAME = re.compile(r"[1-9][0-9]{0,8}\.json")


class FileRegistry:
    """Implements `ports.Registry` and `ports.VersionFiles`. A folder that does not exist reads as an empty registry."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[Path, int, int], ModelVersion] = {}  # path, inode, mtime: parsed once

    @classmethod
    def open_for_writing(cls, path: Path) -> Self:
        """For the one process that writes, once, at its start: makes the folder and removes what a killed writer left."""
        registry = cls(path)
        for folder in (registry._bases, registry._artefacts, registry._path / "models", registry._servers):
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        with registry._writing():
            registry._remove_leftovers()
        return registry

    # --- reading ---

    def versions(self, model: str) -> Sequence[ModelVersion]:
        folder = self._model(model) / "versions"
        if not folder.is_dir():
            return []
        records = (path for path in folder.iterdir() if _RECORD_NAME.fullmatch(path.name))
        return sorted((self._read_version(path) for path in records), key=lambda version: version.number)

    def version(self, model: str, number: int) -> ModelVersion:
        try:
            return self._read_version(self._record(model, number))
        except FileNotFoundError:
            raise NotFoundError(f"model '{model}' has no version {number}") from None

    def aliases(self, model: str) -> Aliases:
        try:
            return _decode(self._aliases_file(model), Aliases)
        except FileNotFoundError:
            return Aliases()

    def artefact_folder(self, version: ModelVersion) -> Path:
        return self._content(self._artefacts, version.digest)

    def base_folder(self, digest: str) -> Path:
        return self._content(self._bases, digest)

    def find_base(self, identity: str) -> str | None:
        """The digest of a base whose card has this identity."""
        if not self._bases.is_dir():
            return None
        for folder in sorted(self._bases.iterdir()):
            if is_digest(folder.name) and _decode(folder / BASE_CARD, BaseCard).identity == identity:
                return folder.name
        return None

    # --- what servers say ---

    def servers(self, model: str) -> Sequence[ServerReport]:
        reports = (_report_in(path) for path in sorted(self._servers.glob("*.json")))
        return [report for report in reports if report and report.model == model]

    def report(self, report: ServerReport) -> None:
        try:
            self._servers.mkdir(exist_ok=True)
            write_whole(self._report(report.server), encode(report))
        except OSError as error:
            raise UnavailableError(f"{self._servers} cannot be written to: {error.strerror}") from error

    def withdraw(self, server: str) -> None:
        with suppress(OSError):
            self._report(server).unlink(missing_ok=True)

    # --- writing ---

    def add(
        self, spec: RunSpec, result: RunResult, folder: Path, *, lineage: Lineage, created_at: datetime
    ) -> ModelVersion:
        """See the port. `folder` is the run folder; of a new base the digest is computed here, not taken from the result."""
        model = self._model(spec.model)
        with self._writing():
            existing = self.versions(spec.model)
            for version in existing:
                if version.lineage.run_id == lineage.run_id:
                    return version
            base = (
                self._take_in(folder / "base", _BASE_FILES, self._bases) if result.base_is_new else result.base_digest
            )
            with VerifiedFolder(self.base_folder(base), base) as stored:
                stored.verify_all()
            digest = self._take_in(folder / "artefact", _VERSION_FILES, self._artefacts)
            with VerifiedFolder(self._artefacts / digest, digest) as artefact:
                artefact.verify_all()
                _check_labels(artefact, result.labels)
                golden = artefact.manifest.files[GOLDEN].sha256
            version = ModelVersion(
                model=spec.model,
                number=existing[-1].number + 1 if existing else 1,
                digest=digest,
                base=base,
                labels=result.labels,
                max_tokens=spec.max_tokens,
                created_at=created_at,
                lineage=lineage,
                evaluation=result.challenger,
                parity=result.parity,
                golden_sha256=golden,
                precision=result.precision,
            )
            (model / "versions").mkdir(parents=True, exist_ok=True)
            for parent in (model, model.parent):
                sync_folder(parent)
            write_whole(self._record(spec.model, version.number), encode(version))
            added = self.version(spec.model, version.number)
        log.info(
            f"version {added.number} of {added.model} added",
            action="version_added",
            model=added.model,
            version=added.number,
            digest=added.digest,
        )
        return added

    def move(self, model: str, aliases: Aliases) -> Aliases:
        named = {alias: getattr(aliases, alias.value) for alias in Alias}
        with self._writing():
            for alias, number in named.items():
                if number is not None and not self._record(model, number).is_file():
                    raise NotFoundError(f"model '{model}' has no version {number}, so it cannot become {alias}")
            stored = self.aliases(model)
            if stored.generation != aliases.generation:
                raise ConflictError(
                    f"the aliases of '{model}' were moved meanwhile: generation {stored.generation}, "
                    f"expected {aliases.generation}; read them again and decide anew"
                )
            moved = replace(aliases, generation=aliases.generation + 1)
            self._model(model).mkdir(parents=True, exist_ok=True)
            write_whole(self._aliases_file(model), encode(moved))
        return moved

    def _writing(self) -> AbstractContextManager[None]:
        return locked(self._path / ".lock")

    def _remove_leftovers(self) -> None:
        for leftover in self._path.rglob(f"{_TEMPORARY}*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            elif leftover.parent == self._servers:
                with suppress(OSError):  # that folder may be the servers' alone
                    leftover.unlink()
            else:
                leftover.unlink(missing_ok=True)

    def _take_in(self, source: Path, names: Sequence[str], parent: Path) -> str:
        """Copy the named files to `parent`/<digest>; returns the digest. A folder that is already there is left as it is."""
        temporary = parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            manifest = encode(Manifest(_copy_files(source, names, temporary)))
            write_durably(temporary / MANIFEST, manifest)
            sync_folder(temporary)
            digest = sha256(manifest).hexdigest()
            if not (parent / digest).exists():
                temporary.rename(parent / digest)
                sync_folder(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return digest

    # --- the layout ---

    @property
    def _bases(self) -> Path:
        return self._path / "bases"

    @property
    def _artefacts(self) -> Path:
        return self._path / "versions"

    @property
    def _servers(self) -> Path:
        return self._path / "servers"

    def _report(self, server: str) -> Path:
        if not _SERVER_NAME.fullmatch(server):
            raise UsageError(f"a server's name is 1 to 120 letters, digits, '.', '_' and '-'; got {server!r}")
        return self._servers / f"{server}.json"

    def _model(self, name: str) -> Path:
        if not _MODEL_NAME.fullmatch(name):
            raise UsageError(f"a model's name is 1 to 63 of a-z, 0-9, _ and -; got {name!r}")
        return self._path / "models" / name

    def _record(self, model: str, number: int) -> Path:
        return self._model(model) / "versions" / f"{number:d}.json"

    def _aliases_file(self, model: str) -> Path:
        return self._model(model) / "aliases.json"

    def _content(self, parent: Path, digest: str) -> Path:
        if not is_digest(digest):
            raise ArtefactError(f"a digest is 64 hexadecimal digits; got {digest!r}")
        return parent / digest

    def _read_version(self, path: Path) -> ModelVersion:
        with _readable(path, ModelVersion):
            status = path.stat()
        key = (path, status.st_ino, status.st_mtime_ns)
        if key not in self._records:
            self._records[key] = _decode(path, ModelVersion)
        return self._records[key]


def _copy_files(source: Path, names: Sequence[str], target: Path) -> dict[str, FileEntry]:
    with PlainFolder(source) as folder:
        return {name: _copy_file(folder, name, target / name) for name in names}


def _copy_file(folder: PlainFolder, name: str, target: Path) -> FileEntry:
    with folder.open(name) as file:
        return copy_durably(file, target)


def _report_in(path: Path) -> ServerReport | None:
    """None for what is no report of the server that the file is named after, or was withdrawn meanwhile. Whatever a server may
    write there, the learner goes on."""
    if not (_SERVER_NAME.fullmatch(path.stem) and path.is_file()):
        return None
    try:
        report = _decode(path, ServerReport)
    except (FileNotFoundError, ArtefactError, RecursionError):
        return None
    return report if report.server == path.stem and report.at.tzinfo else None


def _check_labels(artefact: PlainFolder, labels: Sequence[str]) -> None:
    written = msgspec.json.decode(artefact.read(LABELS))
    if written != list(labels):
        raise ArtefactError(f"{LABELS} says {written}, but the run's result says {list(labels)}")


def _decode(path: Path, kind: type[T]) -> T:
    with _readable(path, kind):
        return decode(path.read_bytes(), kind)


@contextmanager
def _readable(path: Path, kind: type) -> Iterator[None]:
    """FileNotFoundError passes; a file that cannot be read otherwise is an ArtefactError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise ArtefactError(f"{path} cannot be read as {kind.__name__}: {error}") from error
