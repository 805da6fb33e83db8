"""Two real graphs in one process: the second one's memory comes back when it goes, and it is asked for before."""

import gc

import pytest

from daemon.core.errors import UnavailableError
from daemon.core.types import ModelVersion
from daemon.registry.file_registry import FileRegistry
from daemon.runtime import memory
from daemon.serve.ort_loader import OrtLoader
from tests.benchmarks import minilm

MIB = 2**20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> FileRegistry:
    folder = tmp_path_factory.mktemp("graphs")
    registry = FileRegistry.open_for_writing(folder / "registry")
    for seed, graph in enumerate(minilm.bases().values()):
        minilm.add_version(registry, folder / f"r{seed}", graph, seed=seed)
    return registry


@pytest.fixture
def whole(registry: FileRegistry) -> ModelVersion:
    return registry.version(minilm.MODEL, 1)


@pytest.fixture
def half(registry: FileRegistry) -> ModelVersion:
    return registry.version(minilm.MODEL, 2)


def test_the_memory_of_a_graph_that_goes_is_returned(
    registry: FileRegistry, whole: ModelVersion, half: ModelVersion
) -> None:
    loader = OrtLoader(registry, threads=1)
    served = loader.load_warm(whole)
    before_and_after = []
    for _ in range(3):
        second = loader.load_warm(half)
        opened = memory.resident()
        del second
        gc.collect()
        loader.unloaded()
        before_and_after.append((opened, memory.resident()))
    settled = before_and_after[0][1]
    for opened, after in before_and_after:
        assert opened - after > 40 * MIB, "its weights alone are more"
        assert after == pytest.approx(settled, rel=0.05)
    assert served.predictor.predict(["good"])


def test_a_second_graph_is_opened_only_where_there_is_memory_for_it_and_the_first_always(
    registry: FileRegistry, whole: ModelVersion, half: ModelVersion
) -> None:
    left = 16 * MIB
    loader = OrtLoader(registry, threads=1, available=lambda: left)
    first = loader.load_warm(whole)
    with pytest.raises(UnavailableError, match="16 MiB are left"):
        loader.load_warm(half)
    assert loader.load_warm(whole).predictor.predict(["good"]) == first.predictor.predict(["good"])
    left = 1024 * MIB
    assert loader.load_warm(half).predictor.predict(["good"])
