"""Training in several processes, on one machine or more, as `torchrun` starts them.

Each process holds the whole network and works on its share of every batch; gradients are averaged between processes
(torch.nn.parallel.DistributedDataParallel), so that all take the same steps. Rank 0 alone prints and writes. A process without
`torchrun` is a group of one, for which all of this is nothing.
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

_LOST = "another process of this training has ended, so this one ends too; --resume goes on from the last epoch that was finished"
# How long a process waits for the others while rank 0 loads, or downloads, the data.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Group:
    """The processes that train together: `size` of them, of which this is number `rank`, computing on `device`."""

    rank: int
    size: int
    device: torch.device

    def share(self, indices: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch, int64[n]; parts differ by one picture at most."""
        return indices.tensor_split(self.size)[self.rank]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Adds up a tensor over all processes, in place; each gets the same, bit by bit."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called in training, so that gradients are averaged and all start from rank 0's weights."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, [self.device.index] if self.device.type == "cuda" else None)

    def same_buffers(self, network: nn.Module) -> None:
        """Gives every process rank 0's buffers: the running statistics of norms, which each gathers on its own share."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Does on every process what may fail for all alike: first on rank 0, whose error is then the only one to be shown."""
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
            self.leave()
        return work()

    def end_process(self) -> None:
        """Ends a process of several whose work is done, with exit code 0, without the end that Python would make.

        Gloo's threads go on after `destroy_process_group`, because DistributedDataParallel holds on to their group, and one that
        asks for the interpreter's lock while the interpreter ends aborts the process: torchrun would call a training that is done
        failed (https://github.com/pytorch/pytorch/issues/190489).
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def leave(self) -> None:
        """Ends a process other than rank 0, once rank 0 has said why and ended."""
        with contextlib.suppress(RuntimeError):
            dist.barrier()
        raise SystemExit(2)


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Joins the processes that `torchrun` started along with this one; without `torchrun`, gives a group of one.

    Computes on CUDA, a device a process, where it is there and there is one for each, with NCCL; or else on the CPU, with Gloo
    and an equal share of the cores.

    Raises:
        UserError: the processes cannot meet, or, on rank 0, another process has ended.
    """
    try:
        size, rank, local_rank = (int(os.environ.get(name, 0)) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except ValueError:
        raise UserError("WORLD_SIZE, RANK, LOCAL_RANK and LOCAL_WORLD_SIZE are whole numbers, as torchrun sets them") from None
    cuda = torch.cuda.device_count() >= max(local_size, 1)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size <= 1:
        yield Group(0, 1, device)
        return
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))  # torchrun says 1, however many cores there are
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {size} processes of this training cannot meet: {error}") from None
    try:
        yield Group(rank, size, device)
        dist.barrier()
    except KeyboardInterrupt:
        if rank:
            raise SystemExit(130) from None  # rank 0 has had it too, and speaks
        raise
    except RuntimeError as error:
        if not _lost(error):
            raise
        if rank:
            raise SystemExit(2) from None
        raise UserError(_LOST) from None
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether a collective operation failed for want of its peers: Gloo raises a plain RuntimeError that quotes its own source."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
