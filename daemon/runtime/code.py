"""Which code runs: what was released, and what lies here by now."""

from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import daemon

_COMPILED = "__pycache__"


def code_version() -> str:
    """The release and the first 12 digits of the package's `digest_of`; a checkout tells them apart commit by commit."""
    return f"{version('relearnd')}+{digest_of(Path(daemon.__file__).parent)[:12]}"


def digest_of(folder: Path) -> str:
    """sha256 over the names and contents of all files, but for what Python compiled."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _COMPILED not in path.parts:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
