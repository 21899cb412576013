"""CPU limits of cgroups, read from folders like those of the kernel."""

import math
from pathlib import Path

import pytest

from service.model.cpus import cpu_limit


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, math.inf),
        # a group's limit holds for those below it
        (
            {
                "proc/self/cgroup": "0::/kubepods/pod1/serve",
                "sys/fs/cgroup/kubepods/cpu.max": "max 100000",
                "sys/fs/cgroup/kubepods/pod1/cpu.max": "200000 100000",
                "sys/fs/cgroup/kubepods/pod1/serve/cpu.max": "400000 100000",
            },
            2.0,
        ),
        # in a container the path may be the host's, which is not there
        ({"proc/self/cgroup": "0::/kubepods/pod1", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        # the first version of control groups
        (
            {
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
    ],
)
def test_the_smallest_quota_of_the_group_and_its_parents_applies(files: dict[str, str], limit: float, tmp_path: Path) -> None:
    assert cpu_limit(tree(tmp_path, files)) == limit
