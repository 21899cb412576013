"""Whether a worker process still responds: a hung one is replaced within seconds, one that is merely busy never.

The supervisor asks every half second; a thread of the worker answers that does nothing else, so that no load, batch or scrape holds
it up. An answer that does not come may mean different things, which the system tells apart (`ProcessActivity`):

    STOPPED  every thread is stopped, as by SIGSTOP: it will not go on by itself
    IDLE     no thread computes or waits for a disk: the threads wait for each other
    BUSY     it computes, waits for a disk or is held by a debugger: a long call holds Python's lock, or the machine is overloaded

Each has a limit of its own. Time counts in ticks of the supervisor, and none for more than its length: a clock that is set, or a
supervisor or machine that was paused for an hour, makes no worker look hung.
"""

import enum
from collections.abc import Callable, Mapping
from pathlib import Path

from service.errors import ConvoyError

TICK_SECONDS = 0.5

SILENT_SECONDS = 1.5
"""A worker that has not responded for this long is given no HTTP requests, and does not count as ready."""

MIN_BUSY_TICKS = 2
"""CPU that a busy process uses between two looks at least, in the kernel's ticks, of 10 ms. Threads that only wait use less."""


class Activity(enum.Enum):
    """What the threads of a process do; see above. The value is said of a worker that is replaced."""

    STOPPED = "is stopped"
    IDLE = "does not respond, and does not compute either"
    BUSY = "computes, and does not respond"


LIMIT_SECONDS: Mapping[Activity, float] = {Activity.STOPPED: 2.5, Activity.IDLE: 10.0, Activity.BUSY: 60.0}
"""How long a worker that serves may be silent."""

LOADING_LIMIT_SECONDS: Mapping[Activity, float] = {Activity.STOPPED: LIMIT_SECONDS[Activity.STOPPED]}
"""How long one that starts may be; `--worker-start-seconds` limits the whole."""


class WorkerHung(ConvoyError):
    """A worker has been silent for longer than its limit."""


class ProcessActivity:
    """Tells what a process does from `/proc`. Where there is none, it counts as busy."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._folder = proc / str(pid)
        self._cpu_ticks = 0

    def look(self) -> Activity:
        """What it has done since the last look."""
        try:
            used = sum(map(int, _fields(self._folder / "stat")[11:13]))  # utime and stime, of all threads
            states = [_fields(thread / "stat")[0] for thread in (self._folder / "task").iterdir()]
        except (OSError, ValueError, IndexError):
            return Activity.BUSY
        used_before, self._cpu_ticks = self._cpu_ticks, used
        if all(state == "T" for state in states):
            return Activity.STOPPED
        computes = used - used_before >= MIN_BUSY_TICKS
        return Activity.BUSY if computes or any(state in "RDt" for state in states) else Activity.IDLE


def _fields(path: Path) -> list[str]:
    """The fields of a `stat` file from the third on, the state; the second, the name in parentheses, may hold anything."""
    return path.read_text(errors="replace").rpartition(")")[2].split()


class Heartbeat:
    """Judges one worker. Knows no process and no clock.

    Attributes:
        silent_seconds: for how long it has not responded.
        stopped: whether it was stopped when last looked at, and has not responded since.
    """

    def __init__(self, look: Callable[[], Activity], limits: Mapping[Activity, float] = LIMIT_SECONDS) -> None:
        self.limits = limits
        self.silent_seconds = 0.0
        self.stopped = False
        self._look = look
        self._seconds = dict.fromkeys(Activity, 0.0)

    @property
    def silent(self) -> bool:
        """Whether it has not responded for so long that others should be asked."""
        return self.silent_seconds >= SILENT_SECONDS

    def responded(self) -> None:
        """It has responded to what it was asked last."""
        if self.silent_seconds:
            self.silent_seconds = 0.0
            self.stopped = False
            self._seconds = dict.fromkeys(Activity, 0.0)

    def missed(self) -> None:
        """A tick has gone by without a response. Raises WorkerHung when it was the last of its limit."""
        activity = self._look()
        self.silent_seconds += TICK_SECONDS
        self.stopped = activity is Activity.STOPPED
        self._seconds[activity] += TICK_SECONDS
        spent = 0.0
        for each in Activity:  # who was stopped was idle as well
            spent += self._seconds[each]
            if spent >= self.limits.get(each, float("inf")):
                raise WorkerHung(f"it {activity.value}, for {self.silent_seconds:g} s")
