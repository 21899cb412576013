"""The phases of a request: their names, and the seconds that a request spent in each."""

from typing import NamedTuple

PHASES = ("decode", "queue", "inference", "encode")


class Phases(NamedTuple):
    """Seconds in each phase before the reply is encoded; None for a phase that did not happen."""

    decode_seconds: float | None
    queue_seconds: float
    inference_seconds: float
