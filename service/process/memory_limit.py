"""How much memory this process may use, by its cgroups or `ulimit -m`, else what the machine has; and how much of it is free."""

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
    return min([*limits, *(_number(group / limit, UNLIMITED) for group, limit, _ in _groups(root))])


def free_memory_bytes(root: Path = Path("/")) -> int:
    """How much more memory processes of this one's cgroups can get, files that the kernel keeps in memory not counted."""
    free = [_available_bytes(root)]
    for group, limit, usage in _groups(root):
        cached = _statistic(group / "memory.stat", "inactive_file") or _statistic(group / "memory.stat", "total_inactive_file")
        free.append(_number(group / limit, UNLIMITED) - max(0, _number(group / usage, 0) - cached))
    return max(0, min(free))


def _groups(root: Path) -> list[tuple[Path, str, str]]:
    """This process's memory cgroups, those above them too, with the files of their limit and of what they use."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []  # not Linux
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tree, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            tree, files = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = Path(path.lstrip("/"))
        found += [(tree / above, *files) for above in (group, *group.parents)]
    return found


def _available_bytes(root: Path) -> int:
    """What the machine has, without what is used."""
    kibibytes = _statistic(root / "proc/meminfo", "MemAvailable:")
    return 1024 * kibibytes or _PAGE_BYTES * os.sysconf("SC_PHYS_PAGES")


def _statistic(file: Path, name: str) -> int:
    """The number after a name; 0 if the file does not have it."""
    try:
        return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[:1] == [name])
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def _number(file: Path, otherwise: int) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return otherwise  # such as "max"


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
