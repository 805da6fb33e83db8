"""A registry in memory. It keeps what a version is, not its files."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from daemon.core.errors import ConflictError, NotFoundError
from daemon.core.types import Aliases, Lineage, ModelVersion, RunResult, RunSpec, ServerReport


class InMemoryRegistry:
    """Implements `ports.Registry`. `add` does not look into the run folder; digests are of the run's id."""

    def __init__(self) -> None:
        self._versions: dict[str, list[ModelVersion]] = {}
        self._aliases: dict[str, Aliases] = {}
        self._reports: dict[str, ServerReport] = {}
        self._lock = threading.Lock()

    def versions(self, model: str) -> Sequence[ModelVersion]:
        return list(self._versions.get(model, []))

    def version(self, model: str, number: int) -> ModelVersion:
        for version in self._versions.get(model, []):
            if version.number == number:
                return version
        raise NotFoundError(f"model '{model}' has no version {number}")

    def aliases(self, model: str) -> Aliases:
        return self._aliases.get(model, Aliases())

    def servers(self, model: str) -> Sequence[ServerReport]:
        reports = dict(self._reports)
        return [reports[server] for server in sorted(reports) if reports[server].model == model]

    def report(self, report: ServerReport) -> None:
        self._reports[report.server] = report

    def withdraw(self, server: str) -> None:
        self._reports.pop(server, None)

    def add(
        self, spec: RunSpec, result: RunResult, folder: Path, *, lineage: Lineage, created_at: datetime
    ) -> ModelVersion:
        digest = hashlib.sha256(lineage.run_id.encode()).hexdigest()
        with self._lock:
            versions = self._versions.setdefault(spec.model, [])
            for version in versions:
                if version.lineage.run_id == lineage.run_id:
                    return version
            version = ModelVersion(
                model=spec.model,
                number=len(versions) + 1,
                digest=digest,
                base=digest if result.base_is_new else result.base_digest,
                labels=tuple(result.labels),
                max_tokens=spec.max_tokens,
                created_at=created_at,
                lineage=lineage,
                evaluation=result.challenger,
                parity=result.parity,
                golden_sha256=digest,
                precision=result.precision,
            )
            versions.append(version)
            return version

    def move(self, model: str, aliases: Aliases) -> Aliases:
        with self._lock:
            for number in aliases.named:
                self.version(model, number)
            stored = self.aliases(model)
            if stored.generation != aliases.generation:
                raise ConflictError(f"generation {stored.generation} is stored, {aliases.generation} was expected")
            self._aliases[model] = replace(aliases, generation=aliases.generation + 1)
            return self._aliases[model]
