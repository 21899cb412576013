"""How many CPUs this process may use: its affinity, and the quotas of its control groups, which ONNX Runtime does not look at."""

import math
import os
from pathlib import Path


def cpu_budget() -> int:
    """CPUs that this process may use: its affinity, cut by its cgroups' quota, at least 1. ONNX Runtime sees neither limit."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(affinity, cpu_limit())))


def cpu_limit(root: Path = Path("/")) -> float:
    """The CPUs that the quotas of this process's groups allow, such as 1.5; infinite if there is none.

    A group's limit holds for all below it, so the least on the way up counts. In a container the way up usually ends at once: its
    own group is the top of what it sees, whatever path `/proc/self/cgroup` gives.

    `root` is where `proc` and `sys` are found.
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
