"""Builds the contract of an exported model: input, labels, training facts and golden samples."""

import contextlib
import importlib.metadata
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.convert.precision import TOLERANCE, Precision
from export.convert.pytorch_reference import probabilities
from export.data.datasets import Dataset, Part
from export.evaluation.scores import Scores
from export.networks import architectures
from export.training.checkpoint import Checkpoint
from service import convoy_version
from service.errors import InvalidRequest
from service.model.contract import MAX_GOLDEN_PIXELS, Contract, Golden, Training, own_head
from service.model.inference import Model
from service.model.preprocessing import decode, encode_png, open_image, pixels_digest

GOLDEN_SAMPLES = 4
GOLDEN_BYTES = 16 * 1024
"""Largest PNG file that becomes a golden sample as it is."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def build_contract(checkpoint: Checkpoint, dataset: Dataset, name: str, temperature: float = 1.0) -> Contract:
    """The contract of an fp32 model, not measured yet, with one golden sample for each of the first classes."""
    return Contract(
        schema=2,
        name=name,
        input=checkpoint.input,
        heads=(own_head(checkpoint.labels, architectures.activation(checkpoint.network)),),
        precision="fp32",
        training=Training(
            data=checkpoint.data,
            data_digest=checkpoint.data_digest,
            network=architectures.shown(checkpoint.settings.network),
            epochs=checkpoint.epoch,
            parameters=sum(weights.numel() for weights in checkpoint.network.parameters()),
            seed=checkpoint.settings.seed,
            temperature=temperature,
            versions=_versions(),
            commit=source_commit(),
        ),
        golden=_golden_samples(checkpoint, dataset.validation, temperature),
    )


def with_scores(contract: Contract, scores: Scores) -> Contract:
    """The contract with the accuracy and calibration error that were measured on the test part."""
    measured = {
        "accuracy": scores.accuracy,
        "accuracy_interval": scores.accuracy_interval,
        "calibration_error": scores.reliability.error,
    }
    origin = "training" if contract.training else "origin"
    return contract.model_copy(update={origin: contract.measured.model_copy(update=measured)})


def with_own_golden(served: Model, fp32: Contract) -> Contract:
    """The contract of a loaded model of a lower precision, with golden samples.

    Args:
        served: the model.
        fp32: the contract of the fp32 file that it was made from. Its golden images are used with the model's own answers.
    """
    precision: Precision = served.contract.precision
    images = np.stack([decode(sample.image, fp32.input, MAX_GOLDEN_PIXELS) for sample in fp32.golden])
    answers = dict(zip((output.name for output in served.outputs), served.predict(images), strict=True))
    golden = []
    for at, sample in enumerate(fp32.golden):
        rows = tuple(tuple(answers[head.output][at].tolist()) for head in fp32.heads)
        golden.append(sample.model_copy(update={"probabilities": rows, "tolerance": TOLERANCE[precision]}))
    return served.contract.model_copy(update={"golden": tuple(golden)})


def golden_image(part: Part, index: int) -> bytes:
    """The PNG of a golden sample: the image's own file if it is a small PNG, else the decoded pixels.

    The file itself is the better test, since decoding and resizing are replayed too. But versions of libjpeg decode a JPEG
    slightly differently, which must not fail a model, and a photo of megabytes is too large for a contract.
    """
    encoded = part.encoded(index)
    if encoded.startswith(_PNG) and len(encoded) <= GOLDEN_BYTES:
        with contextlib.suppress(InvalidRequest):  # a server would not decode so many pixels
            open_image(encoded, MAX_GOLDEN_PIXELS)
            return encoded
    return encode_png(part.pixels[index])


def source_commit() -> str | None:
    """The commit of Convoy's source if it runs from a git clone, else None."""
    root = Path(__file__).resolve().parents[2]  # the folder of the package `export`
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],  # noqa: S607 - whichever git is on the path
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, commit = found.stdout.strip().rpartition("\n")
    return commit if Path(top) == root else None  # else Convoy is installed inside another project's clone


def _golden_samples(checkpoint: Checkpoint, part: Part, temperature: float) -> tuple[Golden, ...]:
    chosen = [int(np.flatnonzero(part.labels == label)[0]) for label in np.unique(part.labels)[:GOLDEN_SAMPLES]]
    images = [golden_image(part, index) for index in chosen]
    # Not the pixels of the part: where a crop follows the resize, the PNG of these would be resized and cropped once more.
    pixels = np.stack([decode(image, checkpoint.input, MAX_GOLDEN_PIXELS) for image in images])
    expected: NDArray[np.float32] = probabilities(checkpoint, pixels, temperature)
    return tuple(
        Golden.model_construct(
            image=image,
            pixels_sha256=pixels_digest(found),
            probabilities=(tuple(row.tolist()),),
            tolerance=TOLERANCE["fp32"],
        )
        for image, found, row in zip(images, pixels, expected, strict=True)
    )


def _versions() -> dict[str, str]:
    versions = {"convoy": convoy_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
