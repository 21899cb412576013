"""How many workers `--workers auto` comes to, and why. Pure.

Several workers pay where the thread that drives gRPC is the limit. It is for models whose batches run on that thread, because a
picture takes at most a millisecond on one CPU (`engine/scheduling.py`). A model that takes longer computes with all CPUs in one
process: a second one would only cost its memory. So does a GPU, which all processes would share.
"""

from typing import NamedTuple

from service.config import MAX_WORKERS

LARGE_FILES_BYTES = 32 * 2**20
"""No core reads weights of this size within a millisecond: such a model need not be measured."""

SHARE_OF_FREE = 0.5
"""Of the free memory, what all workers may take together: requests and new versions need some, too."""

_MEBIBYTE = 2**20


class Choice(NamedTuple):
    """A number of workers, and the reason for the log."""

    workers: int
    reason: str


class Setting(NamedTuple):
    """What is known before a model is loaded.

    Attributes:
        cpus: those that this process may use, by affinity and quota.
        shares_port: whether processes can share a port on this system.
        has_grpc_socket: whether gRPC has a unix socket, which is one process's.
        has_quotas: whether `--auth` sets quotas, which each worker would count for itself.
        provider: of the flag.
        largest: the name of the model with the largest files, and their bytes.
    """

    cpus: int
    shares_port: bool
    has_grpc_socket: bool
    has_quotas: bool
    provider: str
    largest: tuple[str, int]


class MeasuredModel(NamedTuple):
    """A served version: its provider, and seconds an item on one CPU. `inline`: its batches may run on gRPC's thread."""

    name: str
    provider: str
    seconds: float
    inline: bool


class Survey(NamedTuple):
    """What a worker with all models comes to: the models, and the memory of the process."""

    models: tuple[MeasuredModel, ...]
    process_bytes: int


def one_whatever_is_measured(setting: Setting) -> Choice | None:
    """One worker, if that is certain without loading anything."""
    name, size_bytes = setting.largest
    on_cpu = setting.provider in ("auto", "cpu")
    reasons = {
        "there is one CPU": setting.cpus == 1,
        "processes cannot share a port on this system": not setting.shares_port,
        "--grpc-socket is of one process": setting.has_grpc_socket,
        "each worker would count the quotas of --auth for itself": setting.has_quotas,
        f"--provider {setting.provider}: each worker would hold the models on the device": not on_cpu,
        f"model {name} has {size_bytes // _MEBIBYTE} MiB: no CPU computes that in a millisecond": size_bytes > LARGE_FILES_BYTES,
    }
    return next((Choice(1, reason) for reason, holds in reasons.items() if holds), None)


def choose(survey: Survey, cpus: int, free_bytes: int, largest_messages: int) -> Choice:
    """As many workers as there are CPUs, or as the memory allows, if all models are small; else one.

    Args:
        survey: what was measured.
        cpus: those that this process may use.
        free_bytes: the memory that is free with no worker started.
        largest_messages: how many messages of the largest size may be in flight together: each worker must have room for one.
    """
    if not survey.models:
        return Choice(1, "no model can be measured yet")
    for model in survey.models:
        if model.provider != "cpu":
            return Choice(1, f"model {model.name} computes with {model.provider}: each worker would hold it on the device")
    slowest = max(survey.models, key=lambda model: (not model.inline, model.seconds))
    took = f"model {slowest.name} takes {1000 * slowest.seconds:.2g} ms a picture on one CPU"
    if not slowest.inline:
        return Choice(1, f"{took}: one process computes with all {cpus}")
    affordable = {
        f"there are {cpus} CPUs": cpus,
        "more are not possible": MAX_WORKERS,
        f"{free_bytes // _MEBIBYTE} MiB of memory are free, and a worker takes {survey.process_bytes // _MEBIBYTE}": int(
            SHARE_OF_FREE * free_bytes // survey.process_bytes
        ),
        "each needs room for a largest message in --max-inflight-bytes": largest_messages,
    }
    limit = min(affordable, key=affordable.__getitem__)
    return Choice(max(1, affordable[limit]), f"{took}; {limit}")
