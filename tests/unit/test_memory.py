"""What memory is left, from the files of a kernel written down here."""

import resource
from pathlib import Path

import pytest

from daemon.runtime.memory import available, resident

MIB = 2**20


def write(root: Path, path: str, content: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:    1048576 kB\n")
    return tmp_path


def test_without_control_groups_it_is_what_the_machine_has(root: Path) -> None:
    assert available(root) == 1024 * MIB


def test_the_tightest_limit_of_version_2_counts_without_the_page_cache(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/a/b\n")
    for group, limit, used, cache in (("a/b", "max", 5, 0), ("a", f"{300 * MIB}", 200, 50), ("", "max", 1, 0)):
        write(root, f"sys/fs/cgroup/{group}/memory.max", f"{limit}\n")
        write(root, f"sys/fs/cgroup/{group}/memory.current", f"{used * MIB}\n")
        write(root, f"sys/fs/cgroup/{group}/memory.stat", f"anon 1\ninactive_file {cache * MIB}\n")
    assert available(root) == (300 - 200 + 50) * MIB


def test_version_1_too_where_no_limit_is_a_large_number(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n0::/\n")
    for group, limit in (("x", 100 * MIB), ("", 9223372036854771712)):
        write(root, f"sys/fs/cgroup/memory/{group}/memory.limit_in_bytes", f"{limit}\n")
        write(root, f"sys/fs/cgroup/memory/{group}/memory.usage_in_bytes", f"{60 * MIB}\n")
    write(root, "sys/fs/cgroup/memory/x/memory.stat", f"total_inactive_file {10 * MIB}\n")
    assert available(root) == 50 * MIB


def test_on_this_machine_it_is_a_number_one_can_load_a_model_into() -> None:
    assert available() > 16 * MIB


def test_what_this_process_holds_is_told_although_no_more_files_can_be_opened() -> None:
    assert resident() > MIB
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        assert resident() > MIB
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))
