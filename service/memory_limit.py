"""How much memory this process may use: by its cgroups or `ulimit -m`, else what the machine has."""

import os
import resource
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

UNLIMITED = 2**62
"""Version 1 of cgroups says about 2**63 for no limit."""


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The smallest memory limit of this process's cgroups, but no more than RLIMIT_RSS or the machine's memory.

    RLIMIT_RSS is what `ulimit -m` sets. Linux does not enforce it.

    A group's limit also holds for the groups below it, so the smallest on the way up counts. A container usually sees only its own
    group, as the root, whatever path `/proc/self/cgroup` gives.

    `root` is the folder that holds `proc` and `sys`.
    """
    limits = [_PAGE_BYTES * os.sysconf("SC_PHYS_PAGES")]
    resident, _ = resource.getrlimit(resource.RLIMIT_RSS)
    if resident != resource.RLIM_INFINITY:
        limits.append(resident)
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return min(limits)  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tree, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            tree, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        limits += [_limit(tree / above / file) for above in (group, *group.parents)]
    return min(limits)


def _limit(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return UNLIMITED  # such as "max"


class MemoryLimit:
    """A limit of this process's memory, and how near it is."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = -1  # not Linux: memory is never short

    def is_short(self, share: float) -> bool:
        """Whether the process's resident memory is above this share of the limit."""
        if self._statm < 0:
            return False
        resident_pages = int(os.pread(self._statm, 100, 0).split()[1])
        return resident_pages * _PAGE_BYTES > share * self.limit_bytes
