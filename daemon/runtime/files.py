"""Files that are whole, durable and what they say they are: atomic writes, manifests, reads that are checked first.

A manifest lists the files of a folder with sha256 and size; the sha256 of the manifest itself is the folder's digest.
"""

import fcntl
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from daemon.core.artefact import MANIFEST
from daemon.core.errors import ArtefactError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    sha256: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    files: Mapping[str, FileEntry]


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable: what was renamed into it stays there after a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path`: a reader sees all of the old content or all of the new, and the new is durable on return."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    write_durably(temporary, content)
    temporary.replace(path)
    sync_folder(path.parent)


def copy_durably(source: io.BufferedReader, target: Path) -> FileEntry:
    """Copy from where `source` stands to its end; describes the bytes that were written."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(digest.hexdigest(), size)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the advisory lock on `path`, waiting for it; excludes other processes and other threads alike."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class PlainFolder:
    """Reads regular files of one folder by name, following no symbolic link. Raises ArtefactError for anything else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise ArtefactError(f"{path} is not a folder that can be read: {error.strerror}") from error

    def open(self, name: str) -> io.BufferedReader:
        """The file at its beginning. `name` is one of the names in `core.artefact`; the caller closes the file."""
        if "/" in name or name in ("", ".", ".."):
            raise ArtefactError(f"'{name}' is not the name of a file in {self.path}")
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._descriptor)
        except OSError as error:
            raise ArtefactError(f"{self.path / name} cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ArtefactError(f"{self.path / name} is not a regular file")
        return os.fdopen(descriptor, "rb")

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VerifiedFolder(PlainFolder):
    """A folder with a manifest. A file is handed out only after its bytes were found to be those of the manifest.

    Read from the file that `open` returned and not by path again: then what was verified is what is used.
    """

    def __init__(self, path: Path, digest: str) -> None:
        super().__init__(path)
        try:
            self.manifest = self._read_manifest(digest)
        except ArtefactError:
            self.close()
            raise

    def _read_manifest(self, digest: str) -> Manifest:
        with super().open(MANIFEST) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtefactError(f"{self.path / MANIFEST} does not have the digest {digest}")
        try:
            return msgspec.json.decode(content, type=Manifest)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise ArtefactError(f"{self.path / MANIFEST} is not a manifest: {error}") from error

    def open(self, name: str) -> io.BufferedReader:
        expected = self.manifest.files.get(name)
        if expected is None:
            raise ArtefactError(f"{self.path / MANIFEST} does not list {name}")
        file = super().open(name)
        found = FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)
        if found != expected:
            file.close()
            raise ArtefactError(
                f"{self.path / name} is damaged: sha256 {found.sha256}, {found.size} bytes; "
                f"the manifest says {expected.sha256}, {expected.size} bytes"
            )
        file.seek(0)
        return file

    def verify_all(self) -> None:
        """Raises ArtefactError at the first file that is not as the manifest says."""
        for name in self.manifest.files:
            self.open(name).close()
