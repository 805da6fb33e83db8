"""What every registry promises, over the one on disk and the one in memory; then what only files can show."""

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from daemon.core.artefact import ADAPTER, BASE_CARD, GOLDEN, GRAPH, LABELS, MANIFEST
from daemon.core.errors import ArtefactError, ConflictError, NotFoundError, UnavailableError, UsageError
from daemon.core.ports import Registry
from daemon.core.types import Aliases, ModelVersion, Refusal, ServerReport
from daemon.registry.file_registry import FileRegistry
from daemon.runtime.files import VerifiedFolder
from daemon.testing.registry import InMemoryRegistry
from tests.artefacts import LABELS_OF_TWO, MODEL, NOON, FinishedRun, add_version, finished_run, paper_run, promote


@pytest.fixture(params=["file", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return FileRegistry.open_for_writing(tmp_path / "registry") if request.param == "file" else InMemoryRegistry()


@pytest.fixture
def add(registry: Registry, tmp_path: Path) -> Callable[..., ModelVersion]:
    def add(run_id: str, **changes: object) -> ModelVersion:
        folder = tmp_path / run_id
        in_memory = isinstance(registry, InMemoryRegistry)
        run = paper_run(folder, **changes) if in_memory else finished_run(folder, seed=len(run_id), **changes)  # type: ignore[arg-type]
        return take(registry, run)

    return add


def take(registry: Registry, run: FinishedRun) -> ModelVersion:
    return registry.add(run.spec, run.result, run.folder, lineage=run.lineage, created_at=NOON)


# --- the port ---


def test_an_empty_registry_has_no_versions_and_generation_0(registry: Registry) -> None:
    assert list(registry.versions(MODEL)) == []
    assert registry.aliases(MODEL) == Aliases()
    with pytest.raises(NotFoundError, match="no version 1"):
        registry.version(MODEL, 1)


def test_each_server_has_a_report_of_its_own_by_model_until_it_is_withdrawn(registry: Registry) -> None:
    first = ServerReport("b-1", MODEL, NOON, 1, 3, [Refusal(2, "torn")])
    second, other = replace(first, server="a-1"), replace(first, server="c-1", model="other")
    for report in (first, second, other, replace(second, served=2)):
        registry.report(report)
    assert list(registry.servers(MODEL)) == [replace(second, served=2), first]
    for _ in range(2):
        registry.withdraw("b-1")
    assert list(registry.servers(MODEL)) == [replace(second, served=2)]
    assert list(registry.servers("other")) == [other]


def test_versions_are_numbered_from_1_per_model_and_read_back_as_they_were_added(
    registry: Registry, add: Callable[..., ModelVersion]
) -> None:
    one, two, other = add("r1"), add("run2", labels=("a", "b", "c")), add("x", model="other")
    assert [one.number, two.number, other.number] == [1, 2, 1]
    assert list(registry.versions(MODEL)) == [one, two]
    assert registry.version(MODEL, 2) == two
    assert (list(two.labels), two.created_at, two.lineage.run_id) == (["a", "b", "c"], NOON, "run2")
    assert two.evaluation.slices["past"].accuracy != two.evaluation.slices["past"].accuracy  # NaN stays NaN


def test_adding_a_run_again_gives_the_version_it_already_is(tmp_path: Path, registry: Registry) -> None:
    run = finished_run(tmp_path / "run", seed=1)
    again = [take(registry, run) for _ in range(3)]
    assert [version.number for version in again] == [1, 1, 1]
    assert len(registry.versions(MODEL)) == 1


def test_a_move_counts_generations_and_a_stale_one_is_refused(
    registry: Registry, add: Callable[..., ModelVersion]
) -> None:
    add("r1"), add("run2")
    first = registry.move(MODEL, Aliases(champion=1, moved_at=NOON, reason="bootstrap"))
    assert first == Aliases(1, champion=1, moved_at=NOON, reason="bootstrap") == registry.aliases(MODEL)
    second = registry.move(MODEL, replace(first, champion=2, previous=1))
    with pytest.raises(ConflictError, match="generation 2"):
        registry.move(MODEL, replace(first, champion=1))
    assert registry.aliases(MODEL) == second


def test_an_alias_for_a_version_that_is_not_there_is_refused(
    registry: Registry, add: Callable[..., ModelVersion]
) -> None:
    add("r1")
    for alias in ("champion", "previous", "challenger", "canary", "shadow"):
        with pytest.raises(NotFoundError):
            registry.move(MODEL, replace(Aliases(champion=1), **{alias: 9}))
    assert registry.aliases(MODEL) == Aliases()


def test_of_movers_at_the_same_time_one_wins(registry: Registry, add: Callable[..., ModelVersion]) -> None:
    add("r1")
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def mover() -> None:
        start.wait()
        try:
            registry.move(MODEL, Aliases(champion=1))
            outcomes.append("won")
        except ConflictError:
            outcomes.append("lost")

    movers = [threading.Thread(target=mover) for _ in range(6)]
    for thread in movers:
        thread.start()
    for thread in movers:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]


# --- files ---


@pytest.fixture
def on_disk(tmp_path: Path) -> FileRegistry:
    return FileRegistry.open_for_writing(tmp_path / "registry")


def test_a_registry_that_does_not_exist_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path / "nowhere")
    assert (list(registry.versions(MODEL)), registry.aliases(MODEL), registry.find_base("x")) == ([], Aliases(), None)
    assert not (tmp_path / "nowhere").exists()


def test_folders_are_named_by_what_is_in_them(on_disk: FileRegistry, tmp_path: Path) -> None:
    version = add_version(on_disk, tmp_path / "r1", seed=1)
    for folder, digest in (
        (on_disk.artefact_folder(version), version.digest),
        (on_disk.base_folder(version.base), version.base),
    ):
        manifest = (folder / MANIFEST).read_bytes()
        assert sha256(manifest).hexdigest() == digest == folder.name
        for name, entry in json.loads(manifest)["files"].items():
            content = (folder / name).read_bytes()
            assert entry == {"sha256": sha256(content).hexdigest(), "size": len(content)}
        with VerifiedFolder(folder, digest) as verified:
            verified.verify_all()


def test_versions_on_the_same_base_share_its_folder_and_a_worker_finds_it(
    on_disk: FileRegistry, tmp_path: Path
) -> None:
    one, two = (add_version(on_disk, tmp_path / f"r{seed}", seed=seed) for seed in (1, 2))
    other = add_version(on_disk, tmp_path / "r3", seed=3, base_seed=1)
    assert one.base == two.base != other.base
    identity = json.loads((on_disk.base_folder(other.base) / BASE_CARD).read_bytes())["identity"]
    assert on_disk.find_base(identity) == other.base
    assert on_disk.find_base("unknown") is None


def test_a_run_on_a_known_base_brings_no_base_of_its_own(on_disk: FileRegistry, tmp_path: Path) -> None:
    known = add_version(on_disk, tmp_path / "r1", seed=1)
    run = finished_run(tmp_path / "r2", seed=2)
    (run.folder / "base" / GRAPH).unlink()
    on_known = replace(run, result=replace(run.result, base_is_new=False, base_digest=known.base))
    assert take(on_disk, on_known).base == known.base
    strange = replace(run.result, run_id="r3", base_is_new=False, base_digest="0" * 64)
    with pytest.raises(ArtefactError):
        take(on_disk, replace(on_known, result=strange, lineage=replace(run.lineage, run_id="r3")))


@pytest.mark.parametrize("name", [ADAPTER, LABELS, GOLDEN])
def test_an_artefact_with_a_missing_or_linked_file_leaves_no_version(
    name: str, on_disk: FileRegistry, tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "r1", seed=1)
    file = run.folder / "artefact" / name
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match=name):
        take(on_disk, run)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match=name):
        take(on_disk, run)
    assert list(on_disk.versions(MODEL)) == []
    assert not list((tmp_path / "registry").rglob(".tmp-*"))


def test_labels_that_are_not_those_of_the_result_leave_no_version(on_disk: FileRegistry, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "r1", seed=1)
    (run.folder / "artefact" / LABELS).write_text(json.dumps(LABELS_OF_TWO[::-1]))
    with pytest.raises(ArtefactError, match="labels"):
        take(on_disk, run)
    assert list(on_disk.versions(MODEL)) == []


def test_what_a_killed_writer_left_is_not_seen_and_is_removed_by_the_next_one(
    on_disk: FileRegistry, tmp_path: Path
) -> None:
    version = add_version(on_disk, tmp_path / "r1", seed=1)
    root = tmp_path / "registry"
    (root / "versions" / ".tmp-half").mkdir()
    (root / "versions" / ".tmp-half" / ADAPTER).write_bytes(b"half")
    (root / "models" / MODEL / "versions" / ".tmp-2.json-1").write_bytes(b"{")
    (root / "models" / MODEL / ".tmp-aliases.json-1").write_bytes(b"{")
    assert [found.digest for found in FileRegistry(root).versions(MODEL)] == [version.digest]
    FileRegistry.open_for_writing(root)
    assert not list(root.rglob(".tmp-*"))
    assert [found.digest for found in FileRegistry(root).versions(MODEL)] == [version.digest]


def test_readers_never_see_half_of_a_move(on_disk: FileRegistry, tmp_path: Path) -> None:
    add_version(on_disk, tmp_path / "r1", seed=1)
    add_version(on_disk, tmp_path / "r2", seed=2)
    seen: list[int] = []
    done = threading.Event()

    def reader() -> None:
        mine = FileRegistry(tmp_path / "registry")
        while not done.is_set():
            seen.append(mine.aliases(MODEL).generation)

    thread = threading.Thread(target=reader)
    thread.start()
    for turn in range(50):
        promote(on_disk, 1 + turn % 2)
    done.set()
    thread.join()
    assert seen == sorted(seen)
    assert on_disk.aliases(MODEL).generation == 50


@pytest.mark.parametrize("model", ["", "..", "../x", "a/b", "A", ".hidden", "a" * 64, "x\n"])
def test_a_model_name_from_outside_never_becomes_a_path(model: str, on_disk: FileRegistry) -> None:
    with pytest.raises(UsageError, match="a model's name"):
        on_disk.aliases(model)


@pytest.mark.parametrize("digest", ["", "..", "../" + "0" * 61, "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_digest_from_outside_never_becomes_a_path(digest: str, on_disk: FileRegistry) -> None:
    with pytest.raises(ArtefactError, match="64 hexadecimal digits"):
        on_disk.base_folder(digest)


def test_a_damaged_record_is_an_error_that_names_it(on_disk: FileRegistry, tmp_path: Path) -> None:
    add_version(on_disk, tmp_path / "r1", seed=1)
    record = tmp_path / "registry" / "models" / MODEL / "versions" / "1.json"
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(ArtefactError, match=r"1\.json"):
        FileRegistry(tmp_path / "registry").versions(MODEL)


def test_writing_leaves_no_temporary_file(on_disk: FileRegistry, tmp_path: Path) -> None:
    add_version(on_disk, tmp_path / "r1", seed=1)
    promote(on_disk, 1)
    entries = {os.path.relpath(path, tmp_path / "registry") for path in (tmp_path / "registry").rglob("*")}
    assert not [entry for entry in entries if ".tmp-" in entry]


def test_canary_and_shadow_are_read_back_as_they_were_moved(
    registry: Registry, add: Callable[..., ModelVersion]
) -> None:
    for name in ("r1", "r2", "r3"):
        add(name)
    registry.move(MODEL, Aliases(champion=1, canary=2, canary_share=0.05, shadow=3))
    aliases = registry.aliases(MODEL)
    assert (aliases.canary, aliases.canary_share, aliases.shadow) == (2, 0.05, 3)
    assert aliases.named == {1, 2, 3}


# --- what servers write ---


def test_a_report_that_is_none_or_has_a_name_of_its_own_making_is_passed_over(tmp_path: Path) -> None:
    registry = FileRegistry.open_for_writing(tmp_path)
    registry.report(ServerReport("a", MODEL, NOON, 1, 3))
    (tmp_path / "servers" / "torn.json").write_bytes(b"{")
    (tmp_path / "servers" / "folder.json").mkdir()
    os.mkfifo(tmp_path / "servers" / "pipe.json")
    sound = (tmp_path / "servers" / "a.json").read_text()
    hostile = {"b": sound, "c": sound.replace('"a"', '"c"').replace("Z", ""), "d": '{"x":' + "[" * 100_000}
    for name, content in hostile.items():
        (tmp_path / "servers" / f"{name}.json").write_text(content)
    assert [report.server for report in registry.servers(MODEL)] == ["a"]
    with pytest.raises(UsageError):
        registry.report(ServerReport("../models/m/aliases", MODEL, NOON, 1, 3))


def test_what_a_killed_server_left_and_we_may_not_remove_keeps_no_learner_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FileRegistry.open_for_writing(tmp_path)
    left = tmp_path / "servers" / ".tmp-a.json-7"
    left.touch()

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as theirs:
        theirs.setattr(Path, "unlink", refused)
        FileRegistry.open_for_writing(tmp_path)
    FileRegistry.open_for_writing(tmp_path)
    assert not left.exists()


def test_where_a_server_may_not_write_it_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "servers").write_bytes(b"a file where the folder ought to be")
    with pytest.raises(UnavailableError, match="servers cannot be written to"):
        FileRegistry(tmp_path).report(ServerReport("a", MODEL, NOON, 1, 3))
    assert list(FileRegistry(tmp_path).servers(MODEL)) == []
