"""Names of folders and files in a model repository: `DIR/<model>/<version>/model.onnx`.

Export writes this layout and the server reads it. Beside it they share only the contract (`contract.py`).
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from service.errors import InvalidModel, UserError
from service.model.text_files import read_text

MODEL_FILE = "model.onnx"
POLICY_FILE = "serving.toml"
LABELS_FILE = "labels.txt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_NAMES = (
    "liveness",
    "convoy.v1.Classifier",
    "inference.GRPCInferenceService",
    "grpc.channelz.v1.Channelz",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""Names that mean something else to health checks."""

MAX_VERSION = 2**63 - 1
"""The largest number of an int64, which versions are in the protocols' messages."""

_VERSIONS_ACCEPTED = f"versions are whole numbers from 1 to {MAX_VERSION}, without leading zeros"
_VERSION = re.compile(r"[1-9][0-9]{0,18}")


def check_model_name(name: str) -> str:
    """Returns `name`; raises UserError if it cannot name a model's folder."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"model name {name!r}: a name starts with a letter or digit and holds at most 64 letters, digits, '.', '_' and '-'"
        )
    if name in RESERVED_NAMES:
        raise UserError(f"model name {name!r} is taken: health checks use it for the server itself")
    return name


def logged_version(path: Path) -> str:
    """What log lines call the version whose model file is `path`: "model digits version 1"."""
    return f"model {path.parent.parent.name} version {path.parent.name}"


def model_names(repository: Path) -> list[str]:
    """The models that have a folder in `repository`, sorted. Folders whose name is not a model's are ignored."""
    return sorted(path.name for path in repository.iterdir() if _is_model(path))


def _is_model(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None and path.name not in RESERVED_NAMES and _is_folder(path)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to a place that must not be looked at: whoever reads from it hears why not."""
    try:
        return path.is_dir()
    except OSError:
        return True


def is_version(text: str) -> bool:
    """Whether `text` is the number of a version: 1 to `MAX_VERSION`, without leading zeros."""
    return _VERSION.fullmatch(text) is not None and int(text) <= MAX_VERSION


def _is_there(path: Path) -> bool:
    """Whether a file exists, or whoever reads it hears why that cannot be said."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def version_numbers(repository: Path, name: str) -> list[int]:
    """The versions of a model that have a folder, ascending. Folders that are not numbers of versions are ignored.

    Raises OSError if its folder cannot be read.
    """
    try:
        found = list((repository / name).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(path.name) for path in found if is_version(path.name) and _is_folder(path))


def misplaced(
    repository: Path, name: str | None = None, model_file: Callable[[str], str] = lambda _: MODEL_FILE
) -> list[tuple[Path, str]]:
    """ONNX files that are not where a version's model file belongs, and version folders without one, each with the reason.

    Sorted paths, relative to the repository. Hidden files and folders, and those that cannot be read, are left out. With `name`,
    only the folder or file of this name in the repository is looked at. `model_file` says what a model's file is called; empty if
    whoever loads the model says why it is not served.
    """
    found: dict[Path, str] = {}
    for model in _visible(repository):
        if name is not None and model.name != name:
            continue
        if model.suffix == ".onnx" and not _is_folder(model):
            found[model] = _expected(MODEL_FILE)
        file = model_file(model.name)
        for version in _visible(model) if file else ():
            if version.suffix == ".onnx" and not _is_folder(version):
                found[version] = _expected(file)
            else:
                with contextlib.suppress(OSError):  # the loader says so, if it is a version's
                    found |= _misplaced_in(version, file)
    return sorted((path.relative_to(repository), reason) for path, reason in found.items())


def _misplaced_in(folder: Path, model_file: str) -> dict[Path, str]:
    """What is misplaced in a folder that is where versions are."""
    try:
        check_model_name(folder.parent.name)
        problem = "" if is_version(folder.name) else f"{folder.name!r} is not a version: {_VERSIONS_ACCEPTED}"
    except UserError as error:
        problem = str(error)
    has_model_file = (folder / model_file).exists()
    if has_model_file and not problem:
        return {}
    deeper = [file for inner in _visible(folder) for file in _visible(inner)] if problem else []
    files = [file for file in (*_visible(folder), *deeper) if file.suffix == ".onnx" and not file.is_dir()]
    found = {file: problem if has_model_file and file.parent == folder else _expected(model_file) for file in files}
    if not problem and not files and (folder.is_dir() or folder.is_symlink()):
        found[folder] = f"there is no {model_file} in it"
    return found | {path: "it is a broken link" for path in found if path.is_symlink() and not path.exists()}


def _expected(model_file: str) -> str:
    return f"expected is {Path('<model>', '<version>', model_file)}; {_VERSIONS_ACCEPTED}"


def _visible(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:  # such as NotADirectoryError
        return []


def model_path(repository: Path, name: str, version: int, file: str = MODEL_FILE) -> Path:
    """The model file of a version."""
    return repository / name / str(version) / file


def policy_path(repository: Path, name: str, policies: Path | None = None) -> Path:
    """A model's policy file, which need not exist: `<name>.toml` in `policies` if it exists, else `serving.toml` in its folder."""
    override = policies / f"{name}.toml" if policies is not None else None
    return override if override is not None and _is_there(override) else repository / name / POLICY_FILE


def labels_path(repository: Path, name: str) -> Path:
    """The optional file of labels, one a line, of a model without a contract."""
    return repository / name / LABELS_FILE


def version_labels_path(repository: Path, name: str, version: int) -> Path:
    """The optional file of labels of one version, which comes before that of the model."""
    return repository / name / str(version) / LABELS_FILE


def read_labels(path: Path, check: Callable[[bytes], None] | None = None) -> tuple[str, ...] | None:
    """The lines of a `labels.txt`; None if there is none. Raises InvalidModel if it cannot be read or has an empty line.

    `check` is given the file's content and may raise.
    """
    try:
        labels = tuple(line.strip() for line in read_text(path, check=check).rstrip().split("\n"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidModel(f"{path.name}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidModel(f"{path.name}: {error}") from None
    if labels == ("",):
        raise InvalidModel(f"{path.name} is empty; one label a line is accepted")
    if "" in labels:
        raise InvalidModel(f"{path.name}: line {labels.index('') + 1} is empty; one label a line is accepted")
    return labels


def next_version(repository: Path, name: str) -> int:
    """The number for a new version: one above the highest, or 1. Raises UserError if the highest is the last one possible."""
    highest = max(version_numbers(repository, name), default=0)
    if highest == MAX_VERSION:
        raise UserError(f"model {name!r} has version {MAX_VERSION}, the highest there can be: rename its folder to a lower number")
    return highest + 1
