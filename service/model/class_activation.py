"""Class activation maps (Zhou et al., "Learning Deep Features for Discriminative Localization", arXiv:1512.04150).

A network that ends in global average pooling and a linear layer gives class k the score sum_c w[k,c] mean_yx A[c,y,x] + b[k], where
A are the activations before the pooling. The sum and the mean change places: up to the bias, the score is the mean over all places
of the map M[k] = sum_c w[k,c] A[c], which shows what each place contributed.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def class_activation_map(
    activations: NDArray[np.floating], weights: NDArray[np.floating] | None, index: int
) -> NDArray[np.float32]:
    """The map float32[h,w] of class `index`, before any temperature.

    Args:
        activations: before global average pooling, [C,h,w].
        weights: of the linear layer after it, [K,C]; None if the C channels are the classes themselves.
        index: the class.
    """
    found: NDArray[np.floating] = activations[index] if weights is None else np.tensordot(weights[index], activations, axes=1)
    return found.astype(np.float32)


def enlarged(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A map float32[h,w] in the pixels of the input, float32[height,width]: bilinear between the middles of its places."""
    return np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))
