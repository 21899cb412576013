"""Trains a network and leaves a run folder: `checkpoint.pt`, `metrics.jsonl` (a line an epoch) and `history.png`.

Kept are the weights of the epoch with the lowest validation loss. The test part is looked at once, by `test_accuracy`, with those.

A training can be interrupted at any moment and gone on with from the last finished epoch, exactly: all that an epoch draws by
chance is drawn from the seed and the epoch's number, so that weights, optimiser, schedule and average are all there is to remember.
"""

import copy
import ctypes
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.data import image_folder
from export.data.augmentation import augment
from export.data.datasets import Dataset, Part
from export.networks import architectures
from export.networks.speed_net import SpeedNet
from export.training import checkpoint as checkpoints
from export.training import optimization
from export.training.checkpoint import CHECKPOINT as CHECKPOINT
from export.training.checkpoint import Checkpoint as Checkpoint
from export.training.checkpoint import load_checkpoint as load_checkpoint
from export.training.checkpoint import load_with_state
from export.training.distributed import Group
from export.training.history import Epoch as Epoch
from export.training.history import plot
from export.training.recipes import Settings as Settings
from service.errors import UserError

METRICS = "metrics.jsonl"
CURVES = "curves.png"

_PREDICT_ITEMS = 256
_REPORT_SECONDS = 0.1
_STATISTICS_ITEMS = 20_000
_STATISTICS_BATCH = 64
_WHITENING_PIXELS = 5_000 * 32 * 32


@dataclass(frozen=True)
class Step:
    """How far a training is: steps done and in all, and this process's mean loss and accuracy in the epoch so far."""

    done: int
    total: int
    loss: float
    accuracy: float
    images_per_second: float


def train(
    dataset: Dataset,
    settings: Settings,
    run: Path,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    group: Group | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Trains a network; the same seed on the same machine gives the same weights, on the CPU bit by bit.

    Args:
        dataset: what to train on, and to measure each epoch with.
        settings: how to train.
        run: an existing folder to write to.
        on_step: told how far the training is, some ten times a second.
        on_epoch: told what each epoch came to; of a resumed training, those from there on.
        group: the processes that train together; this one alone if not given.
        resume: go on with the training that was interrupted in `run`.

    Returns:
        The checkpoint of the epoch with the lowest validation loss.

    Raises:
        UserError: the network does not fit the data, the settings do not fit together, the training diverged, or the run cannot be
            written, or resumed with these settings and data.
    """
    group = group or Group(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _keep_freed_memory()
    session = group.in_turn(lambda: _Session(dataset, settings, group))
    history: list[Epoch] = []
    best: Checkpoint | None = None
    if resume:
        best, history = group.in_turn(lambda: session.resume(run))
    while not session.finished(history):
        history.append(session.epoch(len(history) + 1, on_step))
        epoch = history[-1]
        if not math.isfinite(epoch.validation_loss):
            if group.rank:
                group.leave()
            raise UserError(
                f"the training diverged in epoch {epoch.epoch} (validation loss {epoch.validation_loss}): try a lower learning rate"
            )
        if epoch is min(history, key=lambda epoch: epoch.validation_loss):
            best = session.checkpoint(epoch.epoch)
        if best is not None and group.rank == 0:
            checkpoints.save(best, run, session.state(history))
            _write_metrics(history, run)
        on_epoch(epoch)
    if best is None:
        raise RuntimeError("a training of no epochs")
    if group.rank == 0:
        plot(history, run / CURVES)
        checkpoints.save(best, run)  # only now is nothing left to go on with
    best.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return best


class _Session:
    """A network in training: everything that changes from step to step, and the data on the device."""

    def __init__(self, dataset: Dataset, settings: Settings, group: Group) -> None:
        self._dataset, self._settings, self._group = dataset, settings, group
        items = len(dataset.training)
        self._batches = math.ceil(items / settings.batch_size)
        if items // self._batches < group.size:
            raise UserError(
                f"a batch of {items // self._batches} pictures cannot be shared between {group.size} processes: "
                "a larger --batch-size, or fewer processes"
            )
        self._autocast = torch.autocast(group.device.type, torch.bfloat16, enabled=autocasts(settings, group.device))
        image_folder.check_memory(
            items + len(dataset.validation), dataset.input, copies=2
        )  # once more in the order that PyTorch wants
        self._images, self._labels = _tensors(dataset.training)
        self._validation = _tensors(dataset.validation)
        if group.device.type == "cuda" and self._images.nbytes < torch.cuda.mem_get_info(group.device)[0] / 4:
            self._images, self._labels = self._images.to(group.device), self._labels.to(group.device)
        self._mean, self._std = _mean_and_std(_spread(self._images, _STATISTICS_ITEMS))
        self._normalise = _Normalise(self._mean, self._std, group.device)
        torch.manual_seed(settings.seed)
        network = architectures.build(settings.network, dataset.input, len(dataset.labels))
        if isinstance(network, SpeedNet):
            pixels = dataset.input.height * dataset.input.width
            network.whiten(self._normalise(_spread(self._images, max(1, _WHITENING_PIXELS // pixels))).cpu())
        self._network = network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = optimization.optimizer(self._network, settings)
        self._schedule = optimization.schedule(self._optimizer, settings, settings.epochs * self._batches)
        self._average = optimization.MovingAverage(self._network, settings.ema_decay) if settings.ema_decay else None
        self._measured = self._average.network if self._average else self._network

    @cached_property
    def _parallel(self) -> torch.nn.Module:
        """The network as it is called in training; made at the first call, for which the processes have to meet."""
        return self._group.wrap(self._network)

    def epoch(self, number: int, on_step: Callable[[Step], None]) -> Epoch:
        """One pass over the training part, and a look at the validation part."""
        group, settings = self._group, self._settings
        torch.manual_seed(_seed(settings.seed, number, group.rank))  # for networks that draw, as dropout does
        order = torch.randperm(len(self._labels), generator=torch.Generator().manual_seed(_seed(settings.seed, number)))
        changes = torch.Generator(self._images.device).manual_seed(_seed(settings.seed, number, 1 + group.rank))
        self._network.train()
        start = reported = time.perf_counter()
        seen = 0  # by this process
        sums = torch.zeros(3, device=group.device, dtype=torch.float64)  # loss, correct, pictures
        for step, batch in enumerate(order.tensor_split(self._batches), start=(number - 1) * self._batches + 1):
            chosen = group.share(batch).to(self._images.device)
            x = self._normalise(augment(self._images[chosen], self._dataset.augmentation, changes))
            y = self._labels[chosen].to(group.device)
            with self._autocast:
                logits = self._parallel(x).float()
            loss = functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing, reduction="sum")
            # Gradients are averaged over processes, whose shares may differ by a picture: this is the mean over the whole batch.
            loss = loss * (group.size / len(batch))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            rate = self._optimizer.param_groups[0]["lr"]
            self._schedule.step()
            if self._average:
                self._average.update(step)
            sums += _sums(logits.detach(), y)
            seen += len(batch)
            now = time.perf_counter()
            if now - reported >= _REPORT_SECONDS or step == number * self._batches:  # reading the sums makes a GPU wait
                reported = now
                loss_sum, correct, items = sums.tolist()
                total = settings.epochs * self._batches
                on_step(Step(step, total, loss_sum / items, correct / items, seen / (now - start)))
        loss_sum, correct, items = group.sum(sums).tolist()
        seconds = time.perf_counter() - start
        validation_loss, validation_accuracy = self._validate()
        return Epoch(
            number, loss_sum / items, correct / items, validation_loss, validation_accuracy, items / seconds, rate, seconds
        )  # fmt: skip

    def _validate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the validation part, of which each process takes a share."""
        self._group.same_buffers(self._measured)
        chosen = self._group.share(torch.arange(len(self._dataset.validation)))
        found = _logits(self._measured, self._normalise, self._validation[0][chosen])
        sums = self._group.sum(_sums(found, self._validation[1][chosen]).to(self._group.device))
        loss, correct, items = sums.tolist()
        return loss / items, correct / items

    def finished(self, history: list[Epoch]) -> bool:
        """Whether all epochs are done, or the validation loss has not fallen for as many as the settings have patience for."""
        if not history or not self._settings.patience:
            return len(history) >= self._settings.epochs
        best = min(history, key=lambda epoch: epoch.validation_loss)
        return len(history) >= self._settings.epochs or len(history) - best.epoch >= self._settings.patience

    def checkpoint(self, epoch: int) -> Checkpoint:
        """The weights as they are now, in a network of their own."""
        dataset = self._dataset
        network = copy.deepcopy(self._measured).eval().to("cpu")
        kept = (self._mean, self._std, self._settings, epoch, dataset.source, dataset.digest, str(dataset.augmentation))
        return Checkpoint(network, dataset.input, dataset.labels, dataset.name, *kept)

    def state(self, history: list[Epoch]) -> dict[str, Any]:
        """All that `resume` needs beside the best checkpoint."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.network.state_dict() if self._average else None,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": [asdict(epoch) for epoch in history],
            "data": _digest(self._dataset),
            "processes": self._group.size,
        }

    def resume(self, run: Path) -> tuple[Checkpoint, list[Epoch]]:
        """Takes up the training in a run folder after its last finished epoch; gives its best checkpoint and its history."""
        best, state = interrupted(run)
        for name, value in asdict(best.settings).items():
            if value != (now := getattr(self._settings, name)):
                raise UserError(f"cannot resume {str(run)!r}: its --{name.replace('_', '-')} is {value}, and not {now}")
        if state["data"] != _digest(self._dataset):
            raise UserError(f"cannot resume {str(run)!r}: the data are not those that it was started with")
        if state["processes"] != self._group.size:
            raise UserError(
                f"cannot resume {str(run)!r}: it needs {state['processes']} processes, as before, and not {self._group.size}"
            )
        self._network.load_state_dict(state["network"])
        if self._average:
            self._average.network.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        return best, [Epoch(**epoch) for epoch in state["history"]]


def interrupted(run: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The best checkpoint of a training that is to be gone on with, and its state. Raises UserError if there is none."""
    best, state = load_with_state(run)
    if state is None:
        raise UserError(f"the training in {str(run)!r} is finished: there is nothing to resume")
    return best, state


def autocasts(settings: Settings, device: torch.device) -> bool:
    """Whether to compute in bfloat16. `auto` does on a GPU that has it (Ampere and later) and on a CPU with AMX, and nowhere else.

    Raises:
        UserError: bfloat16 is asked for, on a GPU that has none.
    """
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        if settings.autocast == "bf16" and not able:
            raise UserError("--autocast bf16: this GPU has no bfloat16 (Ampere and later do); --autocast off computes in float32")
    else:
        # Without units for it a CPU emulates bfloat16: on two AVX2 cores `speed-net` trains at 31 pictures a second, not 410.
        able = torch.cpu.get_capabilities().get("amx_bf16", False)
    return settings.autocast == "bf16" or (settings.autocast == "auto" and able)


def test_accuracy(checkpoint: Checkpoint, test: Part) -> tuple[int, int]:
    """How many pictures of the test part the network gets right, and of how many."""
    predicted = logits(checkpoint, test.pixels).argmax(axis=1)
    return int((predicted == test.labels).sum()), len(test)


def predict(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities float32[N,K] for pictures uint8[N,H,W,C], computed by PyTorch on the CPU."""
    probabilities: NDArray[np.float32] = torch.from_numpy(logits(checkpoint, pixels)).softmax(1).numpy()
    return probabilities


def logits(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32[N,K] for pictures uint8[N,H,W,C], computed by PyTorch on the CPU."""
    normalise = _Normalise(checkpoint.mean, checkpoint.std, torch.device("cpu"))
    found: NDArray[np.float32] = _logits(checkpoint.network.cpu(), normalise, torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    return found


class _Normalise:
    """uint8 (N, C, H, W) to float32 of mean 0 and standard deviation 1 a channel, on a device, channels last."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._std = torch.tensor(std, device=device)[:, None, None]
        self._device = device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self._device).to(torch.float32, memory_format=torch.channels_last)
        return (images - self._mean) / self._std


@torch.inference_mode()
def _logits(network: torch.nn.Module, normalise: _Normalise, images: torch.Tensor) -> torch.Tensor:
    """Logits float32[N,K], on the CPU, in batches that fit anywhere."""
    network.eval()
    return torch.cat([network(normalise(part)).cpu() for part in torch.split(images, _PREDICT_ITEMS)])


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """float64[3]: the sum of the cross-entropies, how many pictures are right, and how many there are."""
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double(), loss.new_tensor(len(labels)).double()])


def _tensors(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(part.pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(part.labels)


def _spread(images: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the images, from all over them."""
    return images[:: math.ceil(len(images) / most)]


def _mean_and_std(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel of uint8[N,C,H,W], on the scale 0 to 255; a standard deviation is at least 1."""
    total = torch.zeros(2, images.shape[1], dtype=torch.float64, device=images.device)
    for part in torch.split(images, _STATISTICS_BATCH):  # as floats all of them would take four times their memory
        values = part.float()
        total += torch.stack([values.sum((0, 2, 3), dtype=torch.float64), values.square().sum((0, 2, 3), dtype=torch.float64)])
    count = images.numel() / images.shape[1]
    mean = total[0] / count
    std = ((total[1] - count * mean.square()) / max(1.0, count - 1)).clamp(min=0).sqrt().clamp(min=1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _seed(*path: int) -> int:
    """An independent seed for each path of numbers (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


def _digest(dataset: Dataset) -> str:
    """Of all that a training sees of its data."""
    digest = hashlib.sha256(repr((dataset.labels, dataset.input.model_dump(), dataset.augmentation)).encode())
    for part in (dataset.training, dataset.validation):
        digest.update(np.ascontiguousarray(part.pixels).data)
        digest.update(np.ascontiguousarray(part.labels).data)
    return digest.hexdigest()


def _write_metrics(history: list[Epoch], run: Path) -> None:
    """Writes the whole history, so that the file agrees with the checkpoint whenever and however often a training was resumed."""
    partial = run / f"{METRICS}.partial"
    partial.write_text("".join(json.dumps(asdict(epoch)) + "\n" for epoch in history), encoding="utf-8")
    partial.replace(run / METRICS)


def _keep_freed_memory() -> None:
    """Has glibc keep the memory that a step frees for the next one, and PyTorch take what is too large for that in huge pages.

    As it comes, `article-cnn` on MNIST faults in 9,000 pages a step until glibc has learnt how large the blocks are, and 2,000
    from then on: 2,800 and then 4,850 pictures a second on two AVX2 cores. With this it is next to none, and 5,200 from the start.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch when it first allocates
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 32 << 20)  # bytes, the most that it accepts
        libc.mallopt(m_trim_threshold, (2 << 30) - 1)
