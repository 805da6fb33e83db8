"""Reads a policy file. The only part of the judgement that does I/O."""

from pathlib import Path

from daemon.policy.schema import Policy
from daemon.settings.documents import load_document


def load_policy(path: Path) -> Policy:
    """Raises ConfigError with every fault of the file, one a line. What the environment says does not change a policy."""
    return load_document(path, Policy)
