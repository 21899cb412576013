"""Memory limits of cgroups, read from folders like those of the kernel."""

import os
from pathlib import Path

import pytest

from service.process.memory_limit import free_memory_bytes, memory_limit_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, MACHINE),
        ({"proc/self/cgroup": "0::/"}, MACHINE),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, MACHINE),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "nonsense"}, MACHINE),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "1048576"}, 1048576),
        # a group's limit holds for those below it
        (
            {
                "proc/self/cgroup": "0::/pods/pod1",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/pods/memory.max": "2097152",
                "sys/fs/cgroup/pods/pod1/memory.max": "4194304",
            },
            2097152,
        ),
        # in a container the path may be the host's, which is not there
        ({"proc/self/cgroup": "0::/pods/pod1", "sys/fs/cgroup/memory.max": "4194304"}, 4194304),
        # the first version of control groups
        (
            {"proc/self/cgroup": "5:cpu:/x\n4:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "3145728"},
            3145728,
        ),
        ({"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
    ],
)
def test_the_limit_is_the_smallest_of_the_groups_and_the_machine(files: dict[str, str], limit: int, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert memory_limit_bytes(tmp_path) == limit


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 100 kB"}, 102400),
        # a group has less left than the machine, and what the kernel keeps of files counts as free
        (
            {
                "proc/meminfo": "MemAvailable: 1000 kB",
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": "500000",
                "sys/fs/cgroup/memory.current": "450000",
                "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 30000",
            },
            80000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 1000 kB",
                "proc/self/cgroup": "4:memory:/x",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "500000",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "600000",
            },
            0,
        ),
    ],
)
def test_what_is_free_is_the_least_of_the_groups_and_the_machine(files: dict[str, str], free: int, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert free_memory_bytes(tmp_path) == free
