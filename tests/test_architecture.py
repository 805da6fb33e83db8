"""The rules that keep the code as it is: who may import whom, what a process may load, how long things may grow."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grimp
import pytest

import daemon

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "daemon"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_OF_A_MODULE = 500
MOST_LINES_OF_A_FUNCTION = 60

TRAINERS = {"torch", "transformers", "peft", "accelerate", "onnx", "onnxscript", "safetensors"}
DRIFT = {"evidently", "pandas", "sklearn", "scipy"}
LEARNERS_OWN = {"duckdb", "kafka", "apscheduler", "pyarrow"}
ON_REQUEST = {"fastavro", "jsonschema", "referencing"}  # of an extra; imported when the config asks for it


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- imports ------------------------------------------------------------------------------------------------------


def test_import_rules_hold() -> None:
    """The contracts stand in pyproject.toml."""
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )

    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize(
    ("part", "vendors"),
    [("core", set()), ("policy", {"pydantic", "pydantic_core"}), ("cycle.py", {"structlog"})],
)
def test_the_inner_parts_import_the_standard_library_and_us(part: str, vendors: set[str]) -> None:
    place = PACKAGE / part
    allowed = vendors | {"daemon"} | sys.stdlib_module_names

    foreign = {
        f"{named(path)}: {module}"
        for path in ([place] if place.is_file() else place.rglob("*.py"))
        for module in imported_by(path)
        if module.split(".")[0] not in allowed
    }

    assert foreign == set()


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: say `from daemon...`, not a relative import"
            yield node.module or ""


@pytest.mark.parametrize(
    ("root", "extras"),
    [
        ("server", ["serve", "grpc", "feedback"]),
        ("learner", ["learn", "registry"]),
        ("worker", ["train"]),
        ("demo", ["demo", "registry"]),
    ],
)
def test_extras_bring_every_vendor_that_their_process_imports(root: str, extras: list[str]) -> None:
    """The first is needed, the others when the config asks for what they bring."""
    graph = grimp.build_graph("daemon", include_external_packages=True)
    start = f"daemon.{root}"
    ours = {start} | graph.find_descendants(start)
    reached = ours.union(*(graph.find_upstream_modules(module) for module in ours))
    distributions = metadata.packages_distributions()

    vendors = {module for module in reached if module != "daemon" and not module.startswith("daemon.")}
    undeclared = {
        vendor
        for vendor in vendors - sys.stdlib_module_names
        if not {normal(name) for name in distributions.get(vendor, [vendor])} & set().union(*map(declared, extras))
    }

    assert undeclared == set()


def declared(extra: str) -> set[str]:
    """Distributions that `relearnd[extra]` names itself, and what brings two that are part of one API."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {normal(each) for each in project["dependencies"]} | {"click", "pydantic-core"}  # typer's, pydantic's
    for each in project["optional-dependencies"][extra]:
        inner = re.match(r"relearnd\[(.*)\]", each)
        names |= set().union(*map(declared, inner[1].split(","))) if inner else {normal(each)}
    return names


def normal(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


# --- what a process loads -----------------------------------------------------------------------------------------

SERVE_COMMAND = """
import daemon.cli, daemon.server
daemon.server.run_server = lambda config: 0
sys.argv = ["relearnd", "serve", "--config", "configs/dev.yaml"]
try:
    daemon.cli.main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    ("what", "code", "never"),
    [
        ("the learner", "import daemon.learner", TRAINERS | DRIFT | ON_REQUEST),
        ("the server", "import daemon.server", TRAINERS | DRIFT | LEARNERS_OWN | {"grpc"}),
        ("relearnd serve", SERVE_COMMAND, TRAINERS | DRIFT | LEARNERS_OWN | {"grpc"}),
        ("the command line", "import daemon.cli", TRAINERS | DRIFT | LEARNERS_OWN | {"onnxruntime", "uvicorn"}),
    ],
)
def test_a_process_never_loads(what: str, code: str, never: set[str]) -> None:
    loaded = modules_after(code)

    assert loaded & never == set(), f"{what} loads what it must not"
    assert "daemon" in loaded


def modules_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter once `code` has run."""
    told = "\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    fresh = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}{told}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RELEARND_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert fresh.returncode == 0, fresh.stderr
    return set(json.loads(fresh.stdout.splitlines()[-1]))


def test_the_package_called_daemon_is_ours() -> None:
    """PyPI's python-daemon installs a module of the same name."""
    assert Path(daemon.__file__) == PACKAGE / "__init__.py"
    assert set(metadata.packages_distributions().get("daemon", ["relearnd"])) == {"relearnd"}


# --- how long things grow -----------------------------------------------------------------------------------------


def test_no_module_is_long() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in MODULES}

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_MODULE} == {}


def test_no_function_is_long() -> None:
    lengths = {
        f"{named(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


# --- each thing in its place --------------------------------------------------------------------------------------

SQL = re.compile(
    r"\bSELECT\b.+\bFROM\b|\bINSERT\s+INTO\b|\bDELETE\s+FROM\b|\bUPDATE\b.+\bSET\b|\b(CREATE|DROP|ALTER)\s+TABLE\b",
    re.DOTALL,
)


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string, docstrings too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_sql_is_in_the_store_only() -> None:
    elsewhere = [path for path in MODULES if PACKAGE / "store" not in path.parents]

    found = [f"{named(path)}:{line}" for path in elsewhere for line, text in strings(path) if SQL.search(text)]

    assert found == []


def test_the_sql_rule_sees_sql() -> None:
    assert SQL.search("SELECT seq\nFROM examples")
    assert not SQL.search("SELECT one of them, please")


def test_no_clock_and_no_chance_in_the_inner_parts() -> None:
    """Time and randomness are passed in."""
    inner = [path for part in ("core", "policy", "tasks") for path in (PACKAGE / part).rglob("*.py")]

    found = {
        f"{named(path)}: {module}" for path in inner for module in imported_by(path) if module in ("random", "time")
    }
    calls = {
        f"{named(path)}:{node.lineno} .{node.attr}"
        for path in [*inner, PACKAGE / "cycle.py"]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today") and is_datetime(node.value)
    }

    assert found | calls == set()


def is_datetime(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("datetime", "date")
