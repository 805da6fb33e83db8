"""How much room is left where a file lies, and on what kind of file system it lies. Nothing is opened."""

import os
import shutil
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from daemon.core.errors import ConfigError

# Where flock and fcntl locks, mmap or fsync may mean nothing to another machine.
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "ocfs2"}
)
NETWORK_OVER_FUSE = (
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.gcsfuse",
    "fuse.cephfs",
    "fuse.juicefs",
)


class Room(IntEnum):
    """What there is room for: each level allows what those below it do."""

    NO_INGEST = 0
    NO_TRAINING = 1
    SCARCE = 2
    ENOUGH = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Free shares in [0, 1] of the file system."""

    scarce: float
    no_training: float
    no_ingest: float

    def room(self, free: float) -> Room:
        if free < self.no_ingest:
            return Room.NO_INGEST
        if free < self.no_training:
            return Room.NO_TRAINING
        return Room.SCARCE if free < self.scarce else Room.ENOUGH


def free_share(folder: Path) -> float:
    """For us, not for root alone; of what is above where the folder is not there yet."""
    usage = shutil.disk_usage(_nearest(folder))
    return usage.free / usage.total if usage.total else 0.0


def device_of(folder: Path) -> int:
    """The file system's number; of what is above where the folder is not there yet."""
    return _nearest(folder).stat().st_dev


def _nearest(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def size_of(path: Path) -> int:
    """Bytes; 0 where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def refuse_network(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raises ConfigError when the folder of `path` is on a network file system: two learners could hold its lock at once."""
    kind = _kind_of(path.absolute().parent, mounts)
    if kind in NETWORK or kind.startswith(NETWORK_OVER_FUSE):
        raise ConfigError(
            f"{path} is on a network file system ({kind}), where locks may not hold: put store.path on a local disk, or set "
            "store.allow_network to true if you know that they do"
        )


def _kind_of(folder: Path, mounts: Path) -> str:
    """Of the mount that is nearest above; empty where the kernel does not say."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    place = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind
