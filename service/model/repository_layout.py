"""Names of folders and files in a model repository: `DIR/<model>/<version>/model.onnx`.

Export writes this layout and the server reads it. Beside it they share only the contract (`contract.py`).
"""

import re
from pathlib import Path

from service.errors import InvalidModel, UserError
from service.model.text_files import read_text

MODEL_FILE = "model.onnx"
POLICY_FILE = "serving.toml"
LABELS_FILE = "labels.txt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_NAMES = ("liveness",)
"""Names that mean something else to health checks."""

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def check_model_name(name: str) -> str:
    """Returns `name`; raises UserError if it cannot name a model's folder."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"model name {name!r}: a name starts with a letter or digit and holds at most 64 letters, digits, '.', '_' and '-'"
        )
    if name in RESERVED_NAMES:
        raise UserError(f"model name {name!r} is taken: health checks use it for the server itself")
    return name


def model_names(repository: Path) -> list[str]:
    """The models that have a folder in `repository`, sorted. Folders whose name is not a model's are ignored."""
    return sorted(path.name for path in repository.iterdir() if _is_model(path))


def _is_model(path: Path) -> bool:
    return path.is_dir() and _NAME.fullmatch(path.name) is not None and path.name not in RESERVED_NAMES


def version_numbers(repository: Path, name: str) -> list[int]:
    """The versions of a model that have a folder, ascending. Folders that are not positive integers are ignored."""
    folder = repository / name
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name))


def misplaced(repository: Path) -> list[tuple[Path, str]]:
    """ONNX files, at most three folders deep, that are not where a version's model file belongs, each with the reason.

    Sorted paths, relative to the repository.
    """
    files = [file.relative_to(repository) for depth in ("*", "*/*", "*/*/*") for file in repository.glob(f"{depth}.onnx")]
    found = ((file, _why_misplaced(repository, file)) for file in files if not any(part.startswith(".") for part in file.parts))
    return sorted((file, reason) for file, reason in found if reason)


def _why_misplaced(repository: Path, file: Path) -> str:
    """Empty for a version's model file, or a file beside one."""
    model_file = file.with_name(MODEL_FILE)
    if len(file.parts) != 3 or not (repository / model_file).exists():
        if file == model_file and (repository / file).is_symlink():
            return "it is a broken link"
        return f"expected is {Path('<model>', '<version>', MODEL_FILE)}"
    name, version, _ = file.parts
    try:
        check_model_name(name)
    except UserError as error:
        return str(error)
    return "" if _VERSION.fullmatch(version) else f"{version!r} is not a version: versions are whole numbers from 1"


def model_path(repository: Path, name: str, version: int) -> Path:
    """The model file of a version."""
    return repository / name / str(version) / MODEL_FILE


def policy_path(repository: Path, name: str, policies: Path | None = None) -> Path:
    """A model's policy file, which need not exist: `<name>.toml` in `policies` if it exists, else `serving.toml` in its folder."""
    override = policies / f"{name}.toml" if policies is not None else None
    return override if override is not None and override.exists() else repository / name / POLICY_FILE


def labels_path(repository: Path, name: str) -> Path:
    """The optional file of labels, one a line, of a model without a contract."""
    return repository / name / LABELS_FILE


def read_labels(path: Path) -> tuple[str, ...] | None:
    """The lines of a `labels.txt`; None if there is none. Raises InvalidModel if it cannot be read or has an empty line."""
    try:
        labels = tuple(line.strip() for line in read_text(path).rstrip().split("\n"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidModel(f"{path.name}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidModel(f"{path.name}: {error}") from None
    if "" in labels:
        raise InvalidModel(f"{path.name}: line {labels.index('') + 1} is empty; one label a line is accepted")
    return labels


def next_version(repository: Path, name: str) -> int:
    """The number for a new version: one above the highest, or 1."""
    return max(version_numbers(repository, name), default=0) + 1
