"""The optimiser, the schedule of the learning rate, the moving average of the weights, and the precision of the arithmetic."""

import copy

import torch
from torch import nn

from export.training.recipes import Settings
from service.errors import UserError

MOMENTUM = 0.9


def optimizer(network: nn.Module, settings: Settings, head: nn.Module | None = None) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, arXiv:1412.6980), AdamW (Loshchilov and Hutter, arXiv:1711.05101) or SGD with Nesterov momentum.

    Weight decay leaves out parameters of one dimension, which are biases and the scales of norms. Frozen parameters are left out.

    Args:
        network: the network to train.
        settings: of the training.
        head: the last layer, if it has a learning rate of its own.
    """
    of_head = set() if head is None else set(head.parameters())
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [each for each in trained if (each.ndim > 1) == decayed and (each in of_head) == last],
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "lr": settings.head_learning_rate if last else settings.learning_rate,
        }
        for last in (False, True)
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=MOMENTUM, nesterov=True, fused=True)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.learning_rate, fused=True)


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle over all `steps` (Smith, arXiv:1803.09820), with momentum in the opposite direction, or a constant rate."""
    if settings.schedule == "one-cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def uses_bfloat16(settings: Settings, device: torch.device) -> bool:
    """Whether to compute in bfloat16. `auto` does on a GPU that supports it (Ampere and later) and on a CPU with AMX.

    Raises:
        UserError: the settings ask for bfloat16 on a GPU that does not support it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if settings.autocast == "bf16" and not supported:
            raise UserError("--autocast bf16: this GPU has no bfloat16 (Ampere and later do); --autocast off computes in float32")
    else:
        # Other CPUs emulate bfloat16: on two AVX2 cores `speed-net` trains at 31 images a second instead of 410.
        supported = torch.cpu.get_capabilities().get("amx_bf16", False)
    return settings.autocast == "bf16" or (settings.autocast == "auto" and supported)


class MovingAverage:
    """An exponential moving average of a network's weights and buffers (Polyak and Juditsky), as a network of its own.

    The first steps have a lower decay, min(decay, (1 + step) / (10 + step)), so that the random initial weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        # The tensors of state_dict share the network's storage, so these lists stay valid.
        self._averages = [average for average, _ in pairs if average.is_floating_point()]
        self._values = [value for _, value in pairs if value.is_floating_point()]
        self._counters = [(average, value) for average, value in pairs if not average.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after optimiser step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._values, 1 - decay)
        for average, value in self._counters:
            average.copy_(value)
