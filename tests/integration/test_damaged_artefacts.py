"""300 damaged copies of a real exported MiniLM, by a seed: none is served. And the sound one is, between them."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.core.artefact import ADAPTER, BASE_CARD, GOLDEN, GRAPH, LABELS, MANIFEST, TOKENIZER, WEIGHTS
from daemon.core.errors import ArtefactError
from daemon.core.types import ModelVersion
from daemon.registry.file_registry import FileRegistry
from daemon.serve.ort_loader import OrtLoader
from tests.benchmarks import minilm

MUTATIONS = 300
PAGE = 4096


@dataclass(frozen=True)
class Target:
    """A file of the version, and the same file of another version or base."""

    file: Path
    other: Path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> FileRegistry:
    folder = tmp_path_factory.mktemp("damaged")
    registry = FileRegistry.open_for_writing(folder / "registry")
    graphs = minilm.bases()
    minilm.add_version(registry, folder / "r1", graphs["whole"], seed=1)
    minilm.add_version(registry, folder / "r2", graphs["half"], seed=2, labels=("a", "b", "c", "d"))
    return registry


@pytest.fixture(scope="module")
def version(registry: FileRegistry) -> ModelVersion:
    return registry.version(minilm.MODEL, 1)


@pytest.fixture(scope="module")
def targets(registry: FileRegistry, version: ModelVersion) -> list[Target]:
    other = registry.version(minilm.MODEL, 2)
    pairs = [
        (
            registry.artefact_folder(version),
            registry.artefact_folder(other),
            (ADAPTER, WEIGHTS, LABELS, GOLDEN, MANIFEST),
        ),
        (registry.base_folder(version.base), registry.base_folder(other.base), (GRAPH, TOKENIZER, BASE_CARD, MANIFEST)),
    ]
    alike = {TOKENIZER: BASE_CARD}  # both bases have the same tokenizer
    return [Target(ours / name, theirs / alike.get(name, name)) for ours, theirs, names in pairs for name in names]


def flip_a_bit(target: Target, chance: random.Random) -> None:
    place = chance.randrange(target.file.stat().st_size)
    with target.file.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def zero_a_page(target: Target, chance: random.Random) -> None:
    """One that is not zero already: an embedding of a word that never occurs may be."""
    pages = range(-(-target.file.stat().st_size // PAGE))
    with target.file.open("r+b") as file:
        for page in chance.sample(pages, len(pages)):
            file.seek(page * PAGE)
            content = file.read(PAGE)
            if any(content):
                file.seek(page * PAGE)
                file.write(bytes(len(content)))
                return


def cut_short(target: Target, chance: random.Random) -> None:
    os.truncate(target.file, chance.randrange(target.file.stat().st_size))


def append(target: Target, chance: random.Random) -> None:
    with target.file.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, PAGE)))


def swap_for_another_s(target: Target, _: random.Random) -> None:
    shutil.copyfile(target.other, target.file)


def link_symbolically_to_the_same(target: Target, _: random.Random) -> None:
    """To identical bytes elsewhere: whoever may change those must not change what is served."""
    elsewhere = target.file.with_name("elsewhere")
    target.file.rename(elsewhere)
    target.file.symlink_to(elsewhere)


def link_hard_to_another_s(target: Target, _: random.Random) -> None:
    target.file.unlink()
    target.file.hardlink_to(target.other)


def remove(target: Target, _: random.Random) -> None:
    target.file.unlink()


DAMAGES: list[Callable[[Target, random.Random], None]] = [
    flip_a_bit,
    flip_a_bit,
    zero_a_page,
    zero_a_page,
    cut_short,
    append,
    swap_for_another_s,
    link_symbolically_to_the_same,
    link_hard_to_another_s,
    remove,
]


@pytest.fixture
def pristine(targets: list[Target], tmp_path: Path) -> Callable[[Target], None]:
    """Puts a file back as it was."""
    copies = {target.file: tmp_path / f"{place}" for place, target in enumerate(targets)}
    for file, copy in copies.items():
        shutil.copyfile(file, copy)

    def restore(target: Target) -> None:
        target.file.unlink(missing_ok=True)
        target.file.with_name("elsewhere").unlink(missing_ok=True)
        shutil.copyfile(copies[target.file], target.file)

    return restore


def test_none_of_300_damaged_artefacts_is_served(
    registry: FileRegistry, version: ModelVersion, targets: list[Target], pristine: Callable[[Target], None]
) -> None:
    chance = random.Random(20300101)
    assert OrtLoader(registry, threads=1).load_warm(version).predictor.predict(["good"])
    refused: Counter[str] = Counter()
    for _ in range(MUTATIONS):
        target, damage = chance.choice(targets), chance.choice(DAMAGES)
        damage(target, chance)
        with pytest.raises(ArtefactError):
            OrtLoader(registry, threads=1).load_warm(version)
            pytest.fail(f"served after {damage.__name__} of {target.file.name}")
        refused[damage.__name__] += 1
        pristine(target)
    assert refused.total() == MUTATIONS and len(refused) == len(set(DAMAGES)), refused
    assert OrtLoader(registry, threads=1).load_warm(version).predictor.predict(["good"])


def test_a_folder_in_the_place_of_another_is_refused(registry: FileRegistry, version: ModelVersion) -> None:
    """All files fit one another, and the manifest fits them: only the name says that it is another version."""
    ours = registry.artefact_folder(version)
    theirs = registry.artefact_folder(registry.version(minilm.MODEL, 2))
    aside = ours.with_name("aside")
    ours.rename(aside)
    try:
        shutil.copytree(theirs, ours)
        with pytest.raises(ArtefactError):
            OrtLoader(registry, threads=1).load_warm(version)
    finally:
        shutil.rmtree(ours)
        aside.rename(ours)
