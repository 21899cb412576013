"""What a trial of a version is given, and what becomes of it (`trials.py`)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from service.errors import LoadError
from service.model.declared import NOTHING_DECLARED, Declared
from service.model.model_files import Expected
from service.model.providers import Provider
from service.policy import Policy
from service.triton.model_config import NO_TRITON, TritonSettings

if TYPE_CHECKING:
    from service.model.signing import SignedFiles

APPROVED, MEMORY = "approved", "memory"
"""Kinds of outcome that a trial replies, beside the names of errors."""


class Trial(NamedTuple):
    """What is tried: a version with its policy, as the server would load it.

    Attributes:
        path: the model file.
        labels: as `load_model`.
        cpus: CPUs that the server uses for the model.
        asked: a request asks for it: it is tried although it has been refused before.
        signed: what the files must be, if signatures are asked for.
        declared: what is said of a model without a contract.
        triton: what the model's config.pbtxt says beside the policy.
    """

    path: Path
    labels: tuple[str, ...] | None
    policy: Policy
    provider: Provider
    cpus: int
    asked: bool = False
    signed: "SignedFiles | None" = None
    declared: Declared = NOTHING_DECLARED
    triton: TritonSettings = NO_TRITON


class Approval(NamedTuple):
    """A trial that went well, of these files. Larger batches than `max_batch_items` did not work."""

    files: Expected
    max_batch_items: int


TryVersion = Callable[[Trial], Approval]
"""See `Trials.try_version`."""


class Ended(NamedTuple):
    """How the process of a trial has ended: what it replied, or by which signal, or because its time was over.

    `peak_bytes` is the memory that it had at most, beside that of the process that forked it.
    """

    reply: bytes = b""
    signal: int = 0
    late: bool = False
    peak_bytes: int = 0


class TrialsClosed(LoadError):
    """The server stops, and with it the trial."""
