"""Networks of the user's own: found in a file or a module, called by the names of their parameters, and tried before use."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from export.networks import architectures, custom
from service.errors import UserError
from service.model.input_spec import InputSpec

WIDE = InputSpec(height=8, width=12, channels=3)
SQUARE = InputSpec(height=8, width=8, channels=1)
CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, {parameters}):
        super().__init__()
        self.head = nn.LazyLinear({units})

    def forward(self, x):
        return self.head(x.flatten(1))
"""


@pytest.fixture(autouse=True)
def _imports_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def written(folder: Path, parameters: str, units: str) -> str:
    (folder / "net.py").write_text(CODE.format(parameters=parameters, units=units))
    return f"{folder}/net.py:Net"


@pytest.mark.parametrize(
    ("parameters", "units"),
    [
        ("spec, classes", "classes"),
        ("whatever, k", "k if whatever.channels == 3 else 0"),  # two of other names: the input and the number of classes
        ("num_classes", "num_classes"),
        ("in_channels, num_classes, width=4", "num_classes if (in_channels, width) == (3, 4) else 0"),
        ("*, input, n_classes=1000", "n_classes if input.width == 12 else 0"),
        ("img_size, units", "units if img_size == (8, 12) else 0"),
        ("*, shape, n", "n if shape.width == 12 else 0"),
        ("shape, *, n", "n if shape.width == 12 else 0"),
        ("num_classes, *spec", "num_classes if spec == () else 0"),
        ("pretrained=False, **options", "options['num_classes']"),  # as torchvision's and timm's functions
    ],
)
def test_a_class_is_called_by_the_names_of_its_parameters(tmp_path: Path, parameters: str, units: str) -> None:
    network = architectures.build(written(tmp_path, parameters, units), WIDE, 5)
    assert network.training
    assert network(torch.zeros(3, 3, 8, 12)).shape == (3, 5)
    assert architectures.activation(network) == "softmax", "a layer named `head` is not ours"


@pytest.mark.parametrize("classes", [2, 3])
def test_an_attribute_head_of_anothers_network_says_nothing_of_its_logits(tmp_path: Path, classes: int) -> None:
    text = written(tmp_path, "classes", "classes")
    code = (tmp_path / "net.py").read_text().replace("self.head", "self.last") + "\nNet.head = 'sigmoid'\n"
    (tmp_path / "net.py").write_text(code)
    network = architectures.build(text, SQUARE, classes)
    assert network.head == "sigmoid"
    assert architectures.activation(network) == "softmax"


def test_a_file_may_import_its_neighbours_and_name_what_is_inside_a_class(tmp_path: Path) -> None:
    (tmp_path / "blocks_of_mine.py").write_text("SIZE = 7\n")
    (tmp_path / "net.py").write_text(
        "import torch, blocks_of_mine\nclass Made:\n    @classmethod\n    def small(cls, num_classes):\n"
        "        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(blocks_of_mine.SIZE), "
        "torch.nn.Linear(7, num_classes))\n"
    )
    network = architectures.build(f"{tmp_path}/net.py:Made.small", SQUARE, 3)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


def test_a_module_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").write_text("from package_of_mine.inner import Net\n")
    inner = tmp_path / "package_of_mine" / "inner.py"
    inner.write_text(CODE.format(parameters="classes", units="classes"))
    monkeypatch.chdir(tmp_path)
    found = custom.find("package_of_mine:Net")
    assert found == ("package_of_mine:Net", str(inner), hashlib.sha256(inner.read_bytes()).hexdigest())
    assert architectures.build("package_of_mine:Net", SQUARE, 4)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


@pytest.mark.parametrize("factory", ["functools.partial(Net, more=2)", "Maker()"])
def test_the_digest_of_what_is_no_class_or_function_is_of_the_module_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    (tmp_path / "makers_of_mine.py").write_text("class Maker:\n    def __call__(self, classes): pass\n")
    module = tmp_path / "partial_of_mine.py"
    code = CODE.format(parameters="classes, more", units="classes")
    module.write_text(f"import functools\nfrom makers_of_mine import Maker\n{code}\nmade = {factory}\n")
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    assert custom.find("partial_of_mine:made") == ("partial_of_mine:made", str(module), digest)


def test_the_code_has_an_absolute_path_and_the_digest_of_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "classes", "classes")
    monkeypatch.chdir(tmp_path)
    first = architectures.code("net.py:Net")
    assert first == (f"{tmp_path}/net.py:Net", f"{tmp_path}/net.py", hashlib.sha256((tmp_path / "net.py").read_bytes()).hexdigest())
    written(tmp_path, "classes, more=1", "classes")
    second = architectures.code("net.py:Net")
    assert second is not None
    assert second.digest == hashlib.sha256((tmp_path / "net.py").read_bytes()).hexdigest(), "it is read again once it changed"
    assert architectures.code("article-cnn:pool=average") is None
    assert architectures.shown("/home/me/net.py:Net") == "net.py:Net"
    assert architectures.shown("article-cnn:pool=average") == "article-cnn:pool=average"


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "Net", "has no 'Net'; it has no class or function"),
        ("class Other: pass\ndef another(): pass\nimport os", "Net", "has no 'Net'; it has Other, another"),
        ("Net = 3", "Net", "Net is a int; a class or a function that makes the network is needed"),
        ("import torch\nNet = torch.nn.Linear(1, 1)", "Net", "Net is a Linear; a class or a function"),
        ("import no_such_package", "Net", r"ModuleNotFoundError: No module named 'no_such_package' \(line 1 of .*net.py\)"),
        ("x = 1\nclass Net(:", "Net", r"SyntaxError: invalid syntax .*\(line 2 of .*net.py\)"),
        ("raise SystemExit('no')", "Net", r"SystemExit: no \(line 1 of"),
        ("def Net(classes, widths): pass", "Net", "what is 'widths'[?] It can take the input as spec or input or input_spec, "),
        ("def Net(a, b, c): pass", "Net", "what is 'a'[?] It can take"),
        ("def Net(classes):\n    x = 1\n    return x / 0", "Net", r"ZeroDivisionError: division by zero \(line 3 of .*net.py\)"),
        ("def Net(classes): return 'network'", "Net", "made a str, not a torch.nn.Module"),
        ("def Net(): raise AssertionError('not to be called')", "Net", "takes no number of classes; a parameter such as"),
        (
            "from torch.nn import *\ndef Net(classes): return Sequential(Flatten(), LazyLinear(10))", "Net",
            r"for two images of 8x8x1 and 3 classes the network gives numbers of shape \(2, 10\) in evaluation; logits of shape "
            r"\(2, 3\) are needed$",
        ),
        ("from torch.nn import *\ndef Net(classes): return LazyLinear(classes)", "Net", r"\(2, 1, 8, 3\) in .* are needed$"),
        (
            "from torch.nn import *\nclass Net(Module):\n    def __init__(self, classes):\n        super().__init__()\n"
            "        self.last = LazyLinear(classes)\n    def forward(self, x):\n        y = self.last(x.flatten(1))\n"
            "        return (y, y) if self.training else y", "Net", "the network gives a tuple in training",
        ),
        ("from torch.nn import *\ndef Net(classes): return Conv2d(3, classes, 3)", "Net", "RuntimeError: .*channels"),
    ],
)  # fmt: skip
def test_code_that_makes_no_such_network_is_refused_in_one_line(tmp_path: Path, code: str, name: str, message: str) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(UserError, match=message) as refused:
        architectures.build(f"{tmp_path}/net.py:{name}", SQUARE, 3)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py:Net", r"--network nowhere\.py:Net: no such file: /"),
        ("no_such_module:Net", r"no module named 'no_such_module' is installed, nor in /.*\(a file is named FILE\.py:NAME\)"),
        ("torch.no_such_part:Net", r"no module named 'torch\.no_such_part' is installed"),
        ("nowhere.py", r"no network named 'nowhere\.py'; the networks are .*your own: FILE\.py:NAME or MODULE:NAME"),
        ("nosuch:pool=max", "no network named 'nosuch'"),
        ("torch.nn:Linear", "what is 'in_features'[?]"),
        ("os:abort", "takes no number of classes"),
    ],
)
def test_what_is_not_there_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architectures.build(text, SQUARE, 3)
