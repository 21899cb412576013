"""The stop event."""

import subprocess
import sys

_SIGNAL_AT_ANY_MOMENT = """
import random, signal
from service.lifecycle import StopEvent

told = []
stop = StopEvent(told.append)
signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))  # the one signal that a timer can send within microseconds
for _ in range(5_000):
    stop._is_set = False
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 60e-6))
    stop.wait()
print(len(told))
"""


def test_a_signal_ends_the_wait_at_any_moment() -> None:
    """With a `threading.Event` instead, one of the first thousand signals finds the event's lock held, and deadlocks."""
    script = [sys.executable, "-c", _SIGNAL_AT_ANY_MOMENT]
    assert subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout == "5000\n"


_A_THREAD = """
import threading
from service.lifecycle import StopEvent

stop = StopEvent()
threading.Timer(0.1, stop.set).start()
stop.wait()
stop.set()
stop.wait()
print(stop.is_set())
"""


def test_a_thread_ends_the_wait_too() -> None:
    script = [sys.executable, "-c", _A_THREAD]
    assert subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout == "True\n"
