"""A process ends with a thread that it cannot do without."""

import subprocess
import sys

_DIES = """
import logging, threading
from service.process.vital_thread import vital_thread

logging.basicConfig()

def run():
    raise MemoryError

vital_thread(run, "transport").start()
threading.Event().wait(60)
"""


def test_a_process_does_not_outlive_a_thread_that_it_needs() -> None:
    result = subprocess.run([sys.executable, "-c", _DIES], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "the thread transport has ended, exiting at once: MemoryError" in result.stderr
