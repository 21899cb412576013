"""The phases of a request: what each is called, and how long it took."""

from typing import NamedTuple

PHASES = ("decode", "queue", "inference", "encode")


class Phases(NamedTuple):
    """Seconds that a request spent in each phase up to its answer; None for a phase that did not happen."""

    decode_seconds: float | None
    queue_seconds: float
    inference_seconds: float
