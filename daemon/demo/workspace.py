"""The folder of one demo: its config, its policy, and everything the daemon writes."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

import daemon
from daemon.config import Config
from daemon.core.errors import ConfigError, UsageError
from daemon.policy.schema import Policy

MODEL = "sentiment"
LABELS = ("negative", "neutral", "positive")
LONGEST_SOCKET_PATH = 100  # bytes; the system's own limit is 107
_MARK = ".relearnd-demo"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Absolute paths. `folder` is made anew for each demo."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "relearnd.log"

    @property
    def ready_file(self) -> Path:
        return self.folder / "server.url"

    @property
    def socket(self) -> Path:
        """In the folder, or in the system's temporary one where that path is too long for a socket."""
        inside = self.folder / "control.sock"
        if len(str(inside).encode()) <= LONGEST_SOCKET_PATH:
            return inside
        return Path(tempfile.gettempdir()) / f"relearnd-{sha256(str(inside).encode()).hexdigest()[:16]}.sock"


def make_workspace(folder: Path, *, servers: Sequence[str], topic: str, policy_changes: Mapping[str, Any]) -> Workspace:
    """Remove the last demo's folder and write config.yaml and policy.yaml into a new one."""
    workspace = Workspace(folder.resolve())
    if workspace.folder.exists():
        if any(workspace.folder.iterdir()) and not (workspace.folder / _MARK).exists():
            raise UsageError(
                f"{workspace.folder} was not made by a demo and is not empty; name another folder with --out"
            )
        shutil.rmtree(workspace.folder)
    workspace.folder.mkdir(parents=True)
    (workspace.folder / _MARK).touch()
    _write(workspace.policy, changed(_shipped_policy(), policy_changes))
    _write(workspace.config, _config(workspace, servers, topic).model_dump(mode="json"))
    return workspace


def changed(policy: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The policy with the changes laid over it, checked."""
    merged = _laid_over(policy, changes)
    Policy.model_validate(merged)
    return merged


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _laid_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _shipped_policy() -> dict[str, Any]:
    path = Path(daemon.__file__).resolve().parents[1] / "policies" / "demo.yaml"
    if not path.exists():
        raise ConfigError(f"the demo's policy is not at {path}; run the demo from a checkout of relearnd")
    policy: dict[str, Any] = yaml.safe_load(path.read_text())
    return policy


def _config(workspace: Workspace, servers: Sequence[str], topic: str) -> Config:
    folder = workspace.folder
    return Config.model_validate(
        {
            "model": MODEL,
            "policy": workspace.policy,
            "kafka": {"bootstrap_servers": list(servers), "topics": [topic], "group_id": "relearnd-demo"},
            "splits": {"holdout": "20%", "validation": "5%"},
            "task": {"labels": list(LABELS)},
            "store": {"path": folder / "store.duckdb"},
            "registry": {"path": folder / "registry"},
            "runs": {"path": folder / "runs"},
            "control": {"socket": workspace.socket},
            "metrics": {"port": 0},
            "server": {"port": 0, "ready_file": workspace.ready_file, "state": folder / "server-state.json"},
        }
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
