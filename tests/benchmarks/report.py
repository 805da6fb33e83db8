"""What every benchmark ends with: a table on the screen, and `build/bench/<name>.json`."""

import json
import math
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "build" / "bench"


def machine() -> str:
    """The processor, how many of them, memory, and what ran on it."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {memory / 2**20:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def table(title: str, rows: Mapping[str, Any]) -> str:
    """One line a figure, numbers to four digits."""
    width = max(map(len, rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {_shown(value)}" for name, value in rows.items())])


def write(name: str, *, ratios: Mapping[str, float | None], figures: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Print both as tables and keep them as JSON. Returns the file."""
    print(table(f"{name}: ratios", ratios))
    print(table(f"{name}: figures", figures))
    report = {
        "name": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "ratios": ratios,
        "figures": figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")
    return path


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all are at or below; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
