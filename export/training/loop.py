"""A training run: `train` writes `checkpoint.pt`, `metrics.jsonl` (a line an epoch) and `curves.png` to the run's folder.

The weights of the epoch with the lowest validation loss are kept; of the last epoch, where few pictures would say which. The test
part is not used here: it is measured once, afterwards.

An interrupted run resumes after its last finished epoch and then gives the same weights, bit by bit, as an uninterrupted one. All
random numbers of an epoch come from the seed and the epoch's number, so the state to save is that of the network, the optimiser,
the schedule and the moving average.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from export.data.augmentation import augment
from export.data.datasets import Dataset, Part
from export.data.image_files import check_memory
from export.data.sample_size import ENOUGH_TO_CHOOSE, enough_to_choose
from export.networks import architectures
from export.networks.speed_net import SpeedNet
from export.networks.tracing import check_traceable
from export.training import fine_tuning, optimization
from export.training.checkpoint import Checkpoint, load_interrupted, save_checkpoint
from export.training.class_balance import automatic_weights, balanced_order, summed_loss
from export.training.distributed import ProcessGroup
from export.training.history import CURVES, EpochMetrics, best_epoch, kept_epoch, plot_curves, write_metrics
from export.training.inference import batched_logits
from export.training.memory import keep_freed_memory
from export.training.normalization import Normalization, evenly_spaced, mean_and_std
from export.training.pretrained import Loaded, Weights, load_weights
from export.training.recipes import Settings
from service.errors import UserError

_REPORT_SECONDS = 0.1
_STATISTICS_ITEMS = 20_000
_WHITENING_PIXELS = 5_000 * 32 * 32


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training run: steps done and in all; loss and accuracy are this process's means of the epoch so far."""

    done: int
    total: int
    loss: float
    accuracy: float
    images_per_second: float


def train(
    dataset: Dataset,
    settings: Settings,
    run: Path,
    on_step: Callable[[TrainingProgress], None] = lambda step: None,
    on_epoch: Callable[[EpochMetrics], None] = lambda epoch: None,
    group: ProcessGroup | None = None,
    resume: bool = False,
    weights: Weights | None = None,
    on_weights: Callable[[Loaded], None] = lambda loaded: None,
) -> Checkpoint:
    """Trains a network. On the CPU the same seed on the same machine gives the same weights, bit by bit.

    Args:
        dataset: its training part is trained on, its validation part measured after each epoch.
        settings: all settings of the run.
        run: an existing folder to write to.
        on_step: called with the progress, about ten times a second.
        on_epoch: called after each epoch; of a resumed run, after each new one.
        group: the processes of the run; by default this one.
        resume: continue the interrupted training in `run`.
        weights: to start from, as far as they fit.
        on_weights: called with what was loaded of them.

    Returns:
        The checkpoint of the epoch that is kept (`history.kept_epoch`).

    Raises:
        UserError: the network does not fit the data or cannot be exported, the settings contradict each other or name weights that
            the network has not, no weight fits, the training diverged, the run cannot be written, or it cannot be resumed with
            these settings and data.
    """
    group = group or ProcessGroup(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    items = len(dataset.validation)
    _check_patience(settings, items)
    keep_freed_memory()
    trainer = group.rank_zero_first(lambda: _Trainer(dataset, settings, group, weights, on_weights))
    history: list[EpochMetrics] = []
    best: Checkpoint | None = None
    if resume:
        best, history = group.rank_zero_first(lambda: trainer.resume(run))
    while not _finished(history, settings):
        epoch = trainer.epoch(len(history) + 1, on_step)
        _check_finite(epoch, group)
        history.append(epoch)
        if best is None or epoch is kept_epoch(history, items):
            best = trainer.checkpoint(epoch.epoch)
        if group.rank == 0:
            save_checkpoint(best, run, trainer.state(history))
            write_metrics(history, run)
        on_epoch(epoch)
    if best is None:
        raise RuntimeError("a training run of no epochs")
    if group.rank == 0:
        plot_curves(history, run / CURVES, kept_epoch(history, items))
        save_checkpoint(best, run)  # without state: from here on there is nothing to resume
    best.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return best


def _finished(history: Sequence[EpochMetrics], settings: Settings) -> bool:
    """Whether all epochs are done, or the validation loss has not fallen for `patience` epochs."""
    if len(history) >= settings.epochs:
        return True
    return bool(history and settings.patience) and len(history) - best_epoch(history).epoch >= settings.patience


def _check_patience(settings: Settings, validation_items: int) -> None:
    """Raises UserError if the training is to stop by too few validation pictures."""
    if settings.patience and not enough_to_choose(validation_items):
        raise UserError(
            f"--patience {settings.patience}: {validation_items} validation pictures are too few to say when to stop; with "
            f"{ENOUGH_TO_CHOOSE} or more they can"
        )


def _check_finite(epoch: EpochMetrics, group: ProcessGroup) -> None:
    """Raises UserError on rank 0 if the loss is NaN or infinite; the other processes exit."""
    if math.isfinite(epoch.validation_loss):
        return
    if group.rank:
        group.exit_after_rank_zero()
    raise UserError(
        f"the training diverged in epoch {epoch.epoch} (validation loss {epoch.validation_loss}): try a lower learning rate"
    )


class _Trainer:
    """The network, the optimiser and everything else that changes from step to step, and the data as tensors."""

    def __init__(
        self, dataset: Dataset, settings: Settings, group: ProcessGroup, weights: Weights | None,
        on_weights: Callable[[Loaded], None],
    ) -> None:  # fmt: skip
        self._dataset, self._settings, self._group = dataset, settings, group
        self._batches = _batches_an_epoch(len(dataset.training), settings.batch_size, group.size)
        self._autocast = torch.autocast(
            group.device.type, torch.bfloat16, enabled=optimization.uses_bfloat16(settings, group.device)
        )
        # As tensors the images are in memory a second time, in PyTorch's order of axes.
        check_memory(len(dataset.training) + len(dataset.validation), dataset.input, copies=2)
        self._images, self._labels = _tensors(dataset.training)
        self._validation = _tensors(dataset.validation)
        if group.device.type == "cuda" and self._images.nbytes < torch.cuda.mem_get_info(group.device)[0] / 4:
            self._images, self._labels = self._images.to(group.device), self._labels.to(group.device)
        self._mean, self._std = self._normalization()
        self._normalize = Normalization(self._mean, self._std, group.device)
        self._class_weights, self._validation_weights = self._weights_of_classes()
        self._code = architectures.code(settings.network)
        self._network = self._new_network()
        if weights is not None:
            on_weights(load_weights(self._network, weights, architectures.rename(settings.network)))
        self._frozen_norms = fine_tuning.freeze(self._network, settings.freeze)
        self._optimizer = optimization.optimizer(self._network, settings, self._head() if settings.head_learning_rate else None)
        self._schedule = optimization.schedule(self._optimizer, settings, settings.epochs * self._batches)
        self._average = optimization.MovingAverage(self._network, settings.ema_decay) if settings.ema_decay else None
        self._measured = self._average.network if self._average else self._network

    def _new_network(self) -> torch.nn.Module:
        spec = self._dataset.input
        torch.manual_seed(self._settings.seed)
        network = architectures.build(self._settings.network, spec, len(self._dataset.labels))
        if self._code is not None:  # Convoy's own can be exported
            check_traceable(architectures.shown(self._settings.network), network, spec)
        if isinstance(network, SpeedNet):
            sample = evenly_spaced(self._images, max(1, _WHITENING_PIXELS // (spec.height * spec.width)))
            network.whiten(self._normalize(sample).cpu())
        return network.to(self._group.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation by channel, on the scale 0 to 255: those of the settings, else of the training images."""
        mean, std = mean_and_std(evenly_spaced(self._images, _STATISTICS_ITEMS))
        given_mean, given_std = (tuple(255 * value for value in values) for values in (self._settings.mean, self._settings.std))
        return given_mean or mean, given_std or std

    def _weights_of_classes(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """float32[K] for the loss, on the device, and for the validation loss, on the CPU; None where every image weighs the same.

        The epoch is chosen by what is trained for: after balanced sampling by a loss in which all classes weigh the same.
        """
        if weights := self._settings.class_weights:
            return torch.tensor(weights, device=self._group.device), torch.tensor(weights)
        if self._settings.balanced_sampling:
            return None, torch.tensor(automatic_weights(self._dataset.validation.labels, len(self._dataset.labels)))
        return None, None

    def _head(self) -> torch.nn.Module:
        return fine_tuning.last_layer(self._network, self._normalize(self._images[:2]))

    @cached_property
    def _parallel(self) -> torch.nn.Module:
        """The network to call in training. Made at the first call, as all processes must take part."""
        return self._group.wrap(self._network)

    def epoch(self, number: int, on_step: Callable[[TrainingProgress], None]) -> EpochMetrics:
        """One pass over the training part, then the validation part."""
        group, seed = self._group, self._settings.seed
        torch.manual_seed(_seed(seed, number, group.rank))  # for networks with random layers, such as dropout
        order = self._order(torch.Generator().manual_seed(_seed(seed, number)))
        changes = torch.Generator(self._images.device).manual_seed(_seed(seed, number, 1 + group.rank))
        self._network.train()
        for norm in self._frozen_norms:
            norm.eval()
        start = reported = time.perf_counter()
        seen = 0  # by this process
        sums = torch.zeros(4, device=group.device, dtype=torch.float64)  # loss, weights, correct, images
        for step, batch in enumerate(order.tensor_split(self._batches), start=(number - 1) * self._batches + 1):
            rate = self._optimizer.param_groups[0]["lr"]
            sums += self._step(step, batch, changes)
            seen += len(batch)
            now = time.perf_counter()
            if now - reported >= _REPORT_SECONDS or step == number * self._batches:  # reading the sums makes a GPU wait
                reported = now
                loss, weight, correct, items = sums.tolist()
                total = self._settings.epochs * self._batches
                on_step(TrainingProgress(step, total, loss / weight, correct / items, seen / (now - start)))
        loss, weight, correct, items = group.sum(sums).tolist()
        seconds = time.perf_counter() - start
        validation_loss, validation_accuracy, recalls = self._validate()
        known = [recall for recall in recalls if recall is not None]
        return EpochMetrics(
            number, loss / weight, correct / items, validation_loss, validation_accuracy, items / seconds, rate, seconds,
            sum(known) / len(known), recalls,
        )  # fmt: skip

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of the images of an epoch, the same on every process."""
        if self._settings.balanced_sampling:
            return balanced_order(self._labels.cpu(), generator)
        return torch.randperm(len(self._labels), generator=generator)

    def _step(self, step: int, batch: torch.Tensor, changes: torch.Generator) -> torch.Tensor:
        """One step of the optimiser on this process's shard of a batch of indices, int64[n]; gives the shard's `_sums`."""
        shard = self._group.shard(batch).to(self._images.device)
        x = self._normalize(augment(self._images[shard], self._dataset.augmentation, changes))
        y = self._labels[shard].to(self._group.device)
        with self._autocast:
            logits = self._parallel(x).float()
        loss = summed_loss(logits, y, self._class_weights, self._settings.label_smoothing)
        # Gradients are averaged over processes, whose shards may differ by an image: this is the mean over the whole batch.
        loss = loss * (self._group.size / len(batch))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        if self._average:
            self._average.update(step)
        return _sums(logits.detach(), y, self._class_weights)

    def _validate(self) -> tuple[float, float, tuple[float | None, ...]]:
        """Mean loss, accuracy, and recall of each class on the validation part, of which each process computes a shard."""
        self._group.broadcast_buffers(self._measured)
        images, labels = self._validation
        shard = self._group.shard(torch.arange(len(labels)))
        logits = batched_logits(self._measured, self._normalize, images[shard])
        classes, right = len(self._dataset.labels), labels[shard][logits.argmax(1) == labels[shard]]
        sums = torch.cat([_sums(logits, labels[shard], self._validation_weights), right.bincount(minlength=classes).double()])
        loss, weight, correct, items, *hits = self._group.sum(sums.to(self._group.device)).tolist()
        counts = labels.bincount(minlength=classes).tolist()
        recalls = tuple(hit / count if count else None for hit, count in zip(hits, counts, strict=True))
        return loss / weight, correct / items, recalls

    def checkpoint(self, epoch: int) -> Checkpoint:
        """The current weights, as a network of their own."""
        dataset = self._dataset
        return Checkpoint(
            network=copy.deepcopy(self._measured).eval().to("cpu"),
            input=dataset.input,
            labels=dataset.labels,
            data=dataset.name,
            mean=self._mean,
            std=self._std,
            settings=self._settings,
            epoch=epoch,
            source=dataset.source,
            data_digest=dataset.digest,
            augmentation=str(dataset.augmentation),
            code=self._code,
        )

    def state(self, history: Sequence[EpochMetrics]) -> dict[str, Any]:
        """Everything that `resume` needs in addition to the best checkpoint."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.network.state_dict() if self._average else None,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": [asdict(epoch) for epoch in history],
            "data": _digest(self._dataset),
            "processes": self._group.size,
        }

    def resume(self, run: Path) -> tuple[Checkpoint, list[EpochMetrics]]:
        """Restores the state after the last finished epoch of a run; gives its best checkpoint and its history."""
        best, state = load_interrupted(run)
        for name, value in asdict(best.settings).items():
            if value != (now := getattr(self._settings, name)):
                raise UserError(f"cannot resume {str(run)!r}: its --{name.replace('_', '-')} is {value}, not {now}")
        if state["data"] != _digest(self._dataset):
            raise UserError(f"cannot resume {str(run)!r}: it was started with other data")
        if state["processes"] != self._group.size:
            raise UserError(
                f"cannot resume {str(run)!r}: it was started with {state['processes']} processes, not {self._group.size}"
            )
        self._network.load_state_dict(state["network"])
        if self._average:
            self._average.network.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        return best, [EpochMetrics(**epoch) for epoch in state["history"]]


def _batches_an_epoch(items: int, batch_size: int, processes: int) -> int:
    """How many batches of nearly the same size make an epoch. Raises UserError if a batch has less than an image a process."""
    batches = math.ceil(items / batch_size)
    if items // batches < processes:
        raise UserError(
            f"a batch of {items // batches} images cannot be divided among {processes} processes: "
            "choose a larger --batch-size or fewer processes"
        )
    return batches


def _sums(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """float64[4]: the sums of the weighted cross-entropies and of the weights, the numbers of correct answers and of images."""
    loss = functional.cross_entropy(logits, labels, weights, reduction="sum").double()
    items = loss.new_tensor(len(labels))
    weight = items if weights is None else weights[labels].sum().double()
    return torch.stack([loss, weight, (logits.argmax(1) == labels).sum().double(), items])


def _tensors(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""
    return torch.from_numpy(part.pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(part.labels)


def _seed(*path: int) -> int:
    """An independent seed for each path of numbers (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


def _digest(dataset: Dataset) -> str:
    """SHA-256 of everything that training uses of the data."""
    digest = hashlib.sha256(repr((dataset.labels, dataset.input.model_dump(), dataset.augmentation)).encode())
    for part in (dataset.training, dataset.validation):
        digest.update(np.ascontiguousarray(part.pixels).data)
        digest.update(np.ascontiguousarray(part.labels).data)
    return digest.hexdigest()
