"""Training in several processes that `torchrun` starts, on one machine or more.

Each process holds the whole network and computes on its shard of every batch. Gradients are averaged over the processes
(torch.nn.parallel.DistributedDataParallel), so that all take the same steps. Only rank 0 prints and writes. Without `torchrun` the
process is a group of one, and every method here does nothing.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from service.errors import UserError

Result = TypeVar("Result")

# How long a process waits for the others while rank 0 loads, or downloads, the data.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training run: `size` of them, of which this is number `rank`, computing on `device`."""

    rank: int
    size: int
    device: torch.device

    def shard(self, indices: torch.Tensor) -> torch.Tensor:
        """This process's shard of a batch, int64[n]; shards differ by one image at most."""
        return indices.tensor_split(self.size)[self.rank]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over all processes, in place; the result is the same on each, bit by bit."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network to call in training: it averages gradients, and starts from rank 0's weights on every process."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, [self.device.index] if self.device.type == "cuda" else None)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copies rank 0's buffers to every process: the running statistics of norms, which each gathers on its own shard."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def rank_zero_first(self, work: Callable[[], Result]) -> Result:
        """Calls `work` on rank 0, then on the others. If rank 0 fails, the others exit: one process shows the error, not all."""
        if self.size == 1:
            return work()
        done = torch.zeros(1, device=self.device)
        if self.rank == 0:
            try:
                result = work()
                done += 1
            finally:
                dist.broadcast(done, src=0)
            return result
        dist.broadcast(done, src=0)
        if not done.item():
            self.exit_after_rank_zero()
        return work()

    def exit_after_rank_zero(self) -> None:
        """Exits a process other than rank 0 once rank 0 has shown the error and exited."""
        with contextlib.suppress(RuntimeError):
            dist.barrier()
        raise SystemExit(2)

    def exit_process(self) -> None:
        """Exits one of several processes with exit code 0, without Python's finalisation. Does nothing in a group of one.

        Gloo's threads outlive `destroy_process_group`, because DistributedDataParallel keeps a reference to their group. A thread
        that asks for the interpreter's lock during finalisation aborts the process, and torchrun would report a finished training
        as failed (https://github.com/pytorch/pytorch/issues/190489).
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


@contextlib.contextmanager
def join_group() -> Iterator[ProcessGroup]:
    """Joins the processes that `torchrun` started with this one; without `torchrun`, gives a group of one.

    Computes on CUDA with NCCL if there is a device for each process, else on the CPU with Gloo and an equal share of the cores.

    Raises:
        UserError: the processes cannot connect, or, on rank 0, another process has exited.
    """
    try:
        size, rank, local_rank = (int(os.environ.get(name, 0)) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except ValueError:
        raise UserError("WORLD_SIZE, RANK, LOCAL_RANK and LOCAL_WORLD_SIZE must be whole numbers, as torchrun sets them") from None
    cuda = torch.cuda.device_count() >= max(local_size, 1)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size <= 1:
        yield ProcessGroup(0, 1, device)
        return
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))  # torchrun sets 1, however many cores there are
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {size} processes of this training run cannot connect: {error}") from None
    try:
        yield ProcessGroup(rank, size, device)
        dist.barrier()
    except KeyboardInterrupt:
        if rank:
            raise SystemExit(130) from None  # rank 0 is interrupted too, and prints
        raise
    except RuntimeError as error:
        if not _lost_peer(error):
            raise
        if rank:
            raise SystemExit(2) from None
        raise UserError(
            "another process of this training run has exited, so this one exits; --resume continues after the last finished epoch"
        ) from None
    finally:
        dist.destroy_process_group()


def _lost_peer(error: RuntimeError) -> bool:
    """Whether a collective operation failed because a peer exited: Gloo raises a plain RuntimeError that quotes its own source."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
