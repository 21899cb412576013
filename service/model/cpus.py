"""How many CPUs this process may use, by affinity and cgroup quotas. ONNX Runtime looks at neither quota."""

import math
import os
from pathlib import Path


def cpu_budget() -> int:
    """CPUs in this process's affinity mask, but no more than its cgroup quotas allow; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(affinity, cpu_limit())))


def cpu_limit(root: Path = Path("/")) -> float:
    """CPUs that the quotas of this process's cgroups allow, such as 1.5; infinite without a quota.

    A group's quota also limits the groups below it, so the smallest on the way up counts. A container usually sees only its own
    group, as the root, whatever path `/proc/self/cgroup` gives.

    `root` is the folder that holds `proc` and `sys`.
    """
    limits = [math.inf]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tree, read = root / "sys/fs/cgroup", _version_2
        elif "cpu" in controllers.split(","):
            tree, read = root / "sys/fs/cgroup/cpu", _version_1
        else:
            continue
        group = Path(path.lstrip("/"))
        limits += [read(tree / above) for above in (group, *group.parents)]
    return min(limits)


def _version_2(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _version_1(group: Path) -> float:
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
