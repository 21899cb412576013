"""Importing this, before anything of service/, replaces the clocks: each look at one finds that a little time has passed.

So batches are formed alike in every run, however slow the machine is, under valgrind too: a round of calls is one batch, which runs
inline. Looking at this clock is a call of a function in C, as looking at the real one.
"""

import itertools
import time

time.monotonic = itertools.count(1000.0, 1e-6).__next__
time.perf_counter = itertools.count(1000.0, 9e-4).__next__  # which times the batches of the warm-up: all short
