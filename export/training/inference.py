"""PyTorch's answers: what validation measures, and what an exported file is compared with."""

import numpy as np
import torch
from numpy.typing import NDArray

from export.training.checkpoint import Checkpoint
from export.training.normalization import Normalization

_BATCH_ITEMS = 256


def predict_logits(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32[N,K] for images uint8[N,H,W,C], computed on the CPU."""
    normalize = Normalization(checkpoint.mean, checkpoint.std, torch.device("cpu"))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    found: NDArray[np.float32] = batched_logits(checkpoint.network.cpu(), normalize, images).numpy()
    return found


@torch.inference_mode()
def batched_logits(network: torch.nn.Module, normalize: Normalization, images: torch.Tensor) -> torch.Tensor:
    """Logits float32 (N, K) on the CPU for images uint8 (N, C, H, W), a batch at a time."""
    network.eval()
    return torch.cat([network(normalize(batch)).cpu() for batch in torch.split(images, _BATCH_ITEMS)])
