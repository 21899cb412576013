"""Weights from files: what fits by name and shape is loaded, the rest is named, and nothing in the file is run."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from export.networks import architectures
from export.networks.resnet import from_torchvision
from export.training.pretrained import load_weights, read_weights
from service.errors import UserError
from service.model.input_spec import InputSpec

State = dict[str, torch.Tensor]


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def onnx_file(state: State, path: Path) -> None:
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in state.items()]
    onnx.save(helper.make_model(helper.make_graph([], "weights", [], [], tensors)), path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "onnx"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module._orig_mod."])
def test_what_fits_is_loaded_and_the_last_layer_is_new_where_the_classes_differ(tmp_path: Path, suffix: str, prefix: str) -> None:
    source, target = network(1000), network(3)
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    path = tmp_path / f"weights.{suffix}"
    write: dict[str, Callable[[State, Path], None]] = {"pth": torch.save, "safetensors": save_file, "onnx": onnx_file}
    write[suffix](state, path)
    fresh = {name: value.clone() for name, value in target.state_dict().items()}
    loaded = load_weights(target, read_weights(path))
    assert loaded.loaded == ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert loaded.fresh == (("3.weight", (3, 4), (1000, 4)), ("3.bias", (3,), (1000,)))
    for name, value in target.state_dict().items():
        expected = fresh[name] if name.startswith("3.") else source.state_dict()[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_are_found_inside_files_that_hold_more(tmp_path: Path, key: str) -> None:
    source = network()
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, key: source.half().state_dict()}, tmp_path / "w.pt")
    target = network()
    assert load_weights(target, read_weights(tmp_path / "w.pt")).fresh == ()
    assert torch.equal(target[0].weight, source[0].weight.float())  # type: ignore[index]
    assert target[0].weight.dtype == torch.float32  # type: ignore[index]


def test_what_a_file_has_under_another_prefix_is_named_as_not_used(tmp_path: Path) -> None:
    state = network().state_dict()
    parts = {f"{'head.' if name.startswith('3.') else 'backbone.'}{name}": value for name, value in state.items()}
    torch.save(parts, tmp_path / "parts.pth")
    loaded = load_weights(network(), read_weights(tmp_path / "parts.pth"))
    assert [name for name, *_ in loaded.fresh] == ["3.weight", "3.bias"]
    assert loaded.unused == ("head.3.weight", "head.3.bias")


def test_two_sets_of_weights_that_fit_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    both = {f"ema.{name}": torch.zeros_like(value) for name, value in state.items()}
    torch.save(both | {f"model.{name}": value for name, value in state.items()}, tmp_path / "both.pth")
    with pytest.raises(UserError, match=r"ema\.\* and model\.\* fit the network equally well; a file with one of them"):
        load_weights(network(), read_weights(tmp_path / "both.pth"))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    torch.save(network(), tmp_path / "whole.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save({"other.weight": torch.zeros(5, 4), "0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    ones = torch.ones(3, 4)
    odd = {"sparse": ones.to_sparse(), "complex": ones.to(torch.complex64), "meta": ones.to("meta")}
    odd["nested"] = torch.nested.nested_tensor([ones], layout=torch.jagged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch will drop them one day
        odd["quantised"] = torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)
    for kind, tensor in odd.items():
        torch.save({"3.weight": tensor}, tmp_path / f"{kind}.pth")
    for name in ("broken.pth", "broken.safetensors", "broken.onnx"):
        (tmp_path / name).write_bytes(b"no such thing")
    (tmp_path / "words.txt").write_text("weights")
    (tmp_path / "folder.pth").mkdir()
    for name, message in {
        "trap.pth": r"not weights that can be read .*a file of torch\.save\(network\.state_dict\(\), \.\.\.\) is accepted",
        "whole.pth": r"not weights that can be read .*a file of torch\.save\(network\.state_dict\(\), \.\.\.\) is accepted",
        "empty.pth": "holds no tensors by name, as a state dict does",
        "other.pth": "nothing in it fits the network: it has other.weight 5x4, 0.weight 1; the network has 0.weight 4x3x3x3, ",
        **{f"{kind}.pth": f"3.weight is a {kind} tensor; dense ones of real numbers are accepted" for kind in odd},
        "broken.pth": "not weights that can be read",
        "broken.safetensors": "not weights that can be read",
        "broken.onnx": "not weights that can be read",
        "words.txt": r"a file that ends in \.pth, .*\.safetensors, \.onnx is accepted",
        "folder.pth": r"a file that ends in \.pth",
        "nowhere.pth": "No such file or directory",
    }.items():
        with pytest.raises(UserError, match=message) as refused:
            load_weights(network(), read_weights(tmp_path / name))
        assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def torchvision_resnet18(classes: int) -> State:
    """A state dict with the names and shapes of torchvision's and timm's ResNet-18, of random numbers."""

    def norm(name: str, width: int) -> State:
        made = {f"{name}.{part}": torch.rand(width) + 0.5 for part in ("weight", "bias", "running_mean", "running_var")}
        return made | {f"{name}.num_batches_tracked": torch.tensor(7)}

    state = {"conv1.weight": torch.randn(64, 3, 7, 7) * 0.05} | norm("bn1", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            channels = before if block == 0 else width
            state |= {f"{name}.conv1.weight": torch.randn(width, channels, 3, 3) * 0.05} | norm(f"{name}.bn1", width)
            state |= {f"{name}.conv2.weight": torch.randn(width, width, 3, 3) * 0.05} | norm(f"{name}.bn2", width)
            if channels != width:
                state |= {f"{name}.downsample.0.weight": torch.randn(width, channels, 1, 1) * 0.05}
                state |= norm(f"{name}.downsample.1", width)
        before = width
    return state | {"fc.weight": torch.randn(classes, 512) * 0.05, "fc.bias": torch.randn(classes)}


def torchvision_answer(state: State, x: torch.Tensor) -> torch.Tensor:
    """What torchvision's ResNet-18 computes, written down from its paper: the strides are in the first 3x3 of stages 2 to 4."""

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(y, mean, variance, weight, bias)

    x = functional.relu(norm(functional.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.relu(norm(functional.conv2d(x, state[f"{name}.conv1.weight"], None, stride, 1), f"{name}.bn1"))
            y = norm(functional.conv2d(y, state[f"{name}.conv2.weight"], None, 1, 1), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = norm(functional.conv2d(x, state[f"{name}.downsample.0.weight"], None, stride), f"{name}.downsample.1")
            x = functional.relu(x + y)
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_torchvisions_resnet18_loads_by_name_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision_resnet18(1000)
    assert (len(state), sum(value.numel() for value in state.values() if value.ndim)) == (122, 11_699_112)
    torch.save(state, tmp_path / "resnet18.pth")
    spec, text = InputSpec(height=64, width=64, channels=3), "resnet18:stem=imagenet"
    whole = architectures.build(text, spec, 1000)
    report = load_weights(whole, read_weights(tmp_path / "resnet18.pth"), architectures.rename(text))
    assert (len(report.loaded), report.fresh, report.unused) == (102, (), ())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(whole.eval()(x), torchvision_answer(state, x), rtol=1e-4, atol=1e-4)
    ten = load_weights(architectures.build(text, spec, 10), read_weights(tmp_path / "resnet18.pth"), architectures.rename(text))
    assert [(name, given) for name, _, given in ten.fresh] == [("output.weight", (1000, 512)), ("output.bias", (1000,))]
    own = set(whole.state_dict())
    assert {from_torchvision(name) for name in state} == own
    assert {from_torchvision(name) for name in own} == own, "our own files load too"
