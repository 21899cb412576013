"""Where the models of a path are: a file, a version's folder, a model's folder or a repository.

A file that is in no repository is served as version 1 of a model that has the name in its contract, or else that of the file. For
the loader it is put into a repository of links, which is there until it is loaded: `<name>/1` is the file's folder.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from service.engine.model_loader import Only
from service.errors import InvalidModel, UserError
from service.model.contract import Contract
from service.model.onnx_outline import read_outline
from service.model.repository_layout import (
    POLICY_FILE,
    RESERVED_NAMES,
    check_model_name,
    is_version,
    model_names,
    version_numbers,
)
from service.triton.settings import model_file_name

ACCEPTED = "accepted are a model file, the folder of a version or of a model, and a repository, DIR/<model>/<version>/model.onnx"

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Source(NamedTuple):
    """Models to load: their repository, their names, and which version alone, if it is one."""

    repository: Path
    names: tuple[str, ...]
    only: Only | None = None


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """The models of a path, which may be gone at the end. Raises UserError if it has none."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - which leaves links as they are
    if path.is_file():
        found = _version(path.parent, path.name)
        if found is not None:
            yield found
            return
        with TemporaryDirectory(prefix="convoy-") as folder:
            yield _linked(path, Path(folder))
        return
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder; {ACCEPTED}")
    yield _version(path) or _model(path) or _repository(path)


def _version(folder: Path, file: str = "") -> Source | None:
    """The version whose folder this is; None unless it is in a repository, and `file`, if given, is its model file."""
    name, repository = folder.parent.name, folder.parent.parent
    if not is_version(folder.name) or not _is_name(name):
        return None
    model_file = model_file_name(repository, name)
    if not model_file or file not in ("", model_file) or not (folder / model_file).is_file():
        return None
    return Source(repository, (name,), Only(int(folder.name)))


def _model(folder: Path) -> Source | None:
    repository, name = folder.parent, folder.name
    try:
        versions = version_numbers(repository, name)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    if any((folder / str(version) / model_file_name(repository, name)).is_file() for version in versions):
        check_model_name(name)
        return Source(repository, (name,))
    file = folder / "model.onnx"
    if file.is_file():
        raise UserError(f"{folder} is not the folder of a version in a repository; give the file, {file}")
    return None


def _repository(folder: Path) -> Source:
    try:
        names = tuple(model_names(folder))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    names = tuple(name for name in names if _has_versions(folder, name))
    if not names:
        raise UserError(f"{folder}: there is no model in it; {ACCEPTED}")
    return Source(folder, names)


def _has_versions(repository: Path, name: str) -> bool:
    try:
        return bool(version_numbers(repository, name))
    except OSError:
        return True  # whoever loads it says why not


def _linked(file: Path, repository: Path) -> Source:
    name = _name(file)
    model = repository / name
    model.mkdir()
    (model / "1").symlink_to(file.parent, target_is_directory=True)  # weights beside the file are in it, and labels.txt
    policy = file.parent / POLICY_FILE
    if policy.is_file():
        (model / POLICY_FILE).symlink_to(policy)
    return Source(repository, (name,), Only(1, file.name))


def _name(file: Path) -> str:
    """That in the contract of a model file, or the file's own, as far as models can have it."""
    try:
        contract = Contract.of_model(read_outline(file))
    except (OSError, InvalidModel):
        contract = None  # whoever loads it says what is wrong
    name = _NOT_IN_NAMES.sub("-", file.stem if contract is None else contract.name).lstrip("._-")[:64]
    return name if _is_name(name) else "model"


def _is_name(name: str) -> bool:
    try:
        check_model_name(name)
    except UserError:
        return False
    return name not in RESERVED_NAMES
