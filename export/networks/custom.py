"""Networks that Convoy does not have: `FILE.py:NAME`, or `MODULE:NAME` of an installed package or of the working folder.

NAME is a class or function that makes an `nn.Module`. What it is called with is read from its parameters, by their names; two
that are required and have other names are the input (an `InputSpec`) and the number of classes, in this order. The network is tried
on two black images before anything else is done with it.

The code runs with the rights of whoever trains or exports. A checkpoint names the code and has the digest of its file, never the
code itself, and other code than that of the training is refused.
"""

import copy
import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from export.files import read_file
from service.errors import UserError, first_line
from service.model.input_spec import InputSpec

HOW = "FILE.py:NAME or MODULE:NAME"
"""How a network of one's own is named, for messages."""

_SPEC = ("spec", "input", "input_spec")
_CLASSES = ("classes", "num_classes", "n_classes", "nb_classes", "units", "out_features")
_CHANNELS = ("in_channels", "in_chans", "input_channels")
_SIZE = ("image_size", "img_size")


class Code(NamedTuple):
    """Where a network's code is.

    Attributes:
        network: `FILE.py:NAME` with an absolute path, or `MODULE:NAME`.
        file: FILE, or the file of the module that defines NAME.
        digest: SHA-256 of that file, in hexadecimal.
    """

    network: str
    file: str
    digest: str


class _Loader(importlib.abc.ExecutionLoader):
    """Runs the source whose digest was taken, whatever happens to the file meanwhile."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path, self.content = path, source

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 - importlib's signature
        return str(self._path)

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - importlib's signature
        return importlib.util.decode_source(self.content)


def is_custom(text: str) -> bool:
    """Whether a text names code, as HOW says."""
    where, colon, name = text.rpartition(":")
    module = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", where)
    return bool(colon and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name)) and (where.endswith(".py") or module is not None)


def find(text: str, digest: str = "") -> Code:
    """Imports the code.

    Args:
        text: as HOW says.
        digest: of the file that is expected. Another FILE is not run; another module is refused once it is imported.

    Raises:
        UserError: there is no such file, module or name, it is another than is expected, cannot be imported, or is no factory.
    """
    where = text.rpartition(":")[0]
    if digest and where.endswith(".py") and (path := _existing(text, where)):
        _check(Code(text, str(path), hashlib.sha256(read_file(path)).hexdigest()), digest)
    found = _load(text)[1]
    if digest:
        _check(found, digest)
    return found


def build(text: str, spec: InputSpec, classes: int) -> nn.Module:
    """Builds a network with fresh weights.

    Raises:
        UserError: as `find`; the code cannot be called with the input and the number of classes, or fails; or what it makes is no
            network from float32 (N, C, H, W) to logits float32 (N, classes).
    """
    factory, code = _load(text)
    arguments = _arguments(text, factory, spec, classes)
    network: Any = _run(text, code.file, lambda: factory(*arguments.args, **arguments.kwargs))
    if not isinstance(network, nn.Module):
        raise UserError(f"{text} made {_a(network)}, not a torch.nn.Module")
    images = torch.zeros(2, spec.channels, spec.height, spec.width)
    with torch.no_grad():
        # In training it may answer otherwise, as with auxiliary outputs; on a copy, as norms learn from what they see.
        answers = {"in evaluation": _run(text, code.file, lambda: network.eval()(images))}
        answers["in training"] = _run(text, code.file, lambda: copy.deepcopy(network).train()(images))
    for when, answer in answers.items():
        shape = tuple(answer.shape) if isinstance(answer, torch.Tensor) else None
        if shape != (2, classes) or not answer.is_floating_point():
            what = f"numbers of shape {shape}" if shape is not None else _a(answer)
            raise UserError(
                f"{text}: for two images of {'x'.join(map(str, spec.shape))} and {classes} classes the network gives "
                f"{what} {when}; logits of shape (2, {classes}) are needed"
            )
    return network.train()


def _load(text: str) -> tuple[Callable[..., Any], Code]:
    where, _, name = text.rpartition(":")
    if where.endswith(".py"):
        path = _existing(text, where)
        module, where = _import_file(path), str(path)
    else:
        module = _import_module(text, where)
    factory: Any = module
    for part in name.split("."):
        if not hasattr(factory, part):
            made = [key for key, value in vars(module).items() if _is_factory(value) and value.__module__ == module.__name__]
            raise UserError(f"--network {text}: {where} has no {name!r}; it has {', '.join(made) or 'no class or function'}")
        factory = getattr(factory, part)
    if not _is_factory(factory):
        raise UserError(f"--network {text}: {name} is {_a(factory)}; a class or a function that makes the network is needed")
    loader = getattr(module, "__loader__", None)
    if isinstance(loader, _Loader):
        file, content = where, loader.content
    else:
        # Other things that can be called, such as a `functools.partial`, name the module of their type.
        owner = factory.__module__ if inspect.isclass(factory) or inspect.isroutine(factory) else ""
        defined = sys.modules.get(owner or "", module)
        file = getattr(defined, "__file__", None) or getattr(module, "__file__", None) or ""
        if not file:
            raise UserError(f"--network {text}: {where} has no source file")
        content = read_file(Path(file))
    return factory, Code(f"{where}:{name}", file, hashlib.sha256(content).hexdigest())


def _existing(text: str, where: str) -> Path:
    path = Path(where).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"--network {text}: no such file: {path}")
    return path


def _check(found: Code, digest: str) -> None:
    if found.digest != digest:
        raise UserError(
            f"{found.file} has changed since the training (SHA-256 {found.digest[:16]}, then {digest[:16]}): put back what it was, "
            "or train again"
        )


def _import_file(path: Path) -> Any:
    """Runs a file as a module of its own name, once for each content. It may import its neighbours, as if Python ran it."""
    source = read_file(path)
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(path, source))
    if spec is None or spec.loader is None:
        raise RuntimeError(f"no module can be made of {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _run(str(path), str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(text: str, name: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return _run(name, "", lambda: importlib.import_module(name))
    except _Failed as error:
        missing = error.cause
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
            raise UserError(
                f"--network {text}: no module named {missing.name!r} is installed, nor in {Path.cwd()} "
                "(a file is named FILE.py:NAME)"
            ) from None
        raise


class _Failed(UserError):
    """The user's code raised an error."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause


def _run(text: str, file: str, call: Callable[[], Any]) -> Any:
    """What the user's code returns; a UserError with its error, and the line of its file."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f" (line {line} of {file})" if line is not None and file else ""
        raise _Failed(f"{text}: {type(error).__name__}: {first_line(Exception(error))}{where}", error) from None


def _arguments(text: str, factory: Callable[..., Any], spec: InputSpec, classes: int) -> inspect.BoundArguments:
    """What the factory is called with, by the names of its parameters."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        raise UserError(f"--network {text}: its parameters cannot be read") from None
    size = spec.height if spec.height == spec.width else (spec.height, spec.width)
    known: dict[str, Any] = dict.fromkeys(_SPEC, spec)
    known |= dict.fromkeys(_CLASSES, classes) | dict.fromkeys(_CHANNELS, spec.channels)
    known |= dict.fromkeys(_SIZE, size)
    by_position: list[Any] = []
    by_name: dict[str, Any] = {}
    unknown: list[str] = []
    kinds = inspect.Parameter
    for name, parameter in signature.parameters.items():
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            continue
        required = parameter.default is kinds.empty
        if name in known and parameter.kind is not kinds.POSITIONAL_ONLY:
            by_name[name] = known[name]
        elif required:
            unknown.append(name)
    if unknown and len(unknown) == 2 and not by_name:
        for name, value in zip(unknown, (spec, classes), strict=True):
            if signature.parameters[name].kind is kinds.KEYWORD_ONLY:
                by_name[name] = value
            else:
                by_position.append(value)
    elif unknown:
        raise UserError(
            f"--network {text}: what is {unknown[0]!r}? It can take the input as {' or '.join(_SPEC)}, the number of classes as "
            f"{' or '.join(_CLASSES)}, of channels as {' or '.join(_CHANNELS)}, and the side as {' or '.join(_SIZE)}; "
            "others need a default"
        )
    elif not set(by_name) & set(_CLASSES):
        if not any(each.kind is kinds.VAR_KEYWORD for each in signature.parameters.values()):
            raise UserError(f"--network {text}: takes no number of classes; a parameter such as {_CLASSES[1]!r} is needed")
        by_name["num_classes"] = classes  # torchvision's and timm's functions hand it on
    return signature.bind(*by_position, **by_name)


def _is_factory(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _a(value: Any) -> str:
    return f"a {type(value).__name__}"
