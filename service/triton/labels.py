"""The labels of a model without a contract, of all the files that may have some."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import InvalidModel
from service.model.declared import Declared
from service.model.repository_layout import LABELS_FILE, labels_path, read_labels, version_labels_path
from service.triton.config_file import CONFIG_FILE
from service.triton.model_config import TritonSettings
from service.triton.settings import ModelSettings, declare

if TYPE_CHECKING:
    from service.model.signing import SignedFiles


def label_paths(model_folder: Path, triton: TritonSettings) -> dict[str, Path]:
    """The files of labels that the config names, by output."""
    return {output: model_folder / file for output, file in triton.label_files}


def declared_labels(
    repository: Path, name: str, version: int, settings: ModelSettings, signed: "SignedFiles | None" = None
) -> tuple[tuple[str, ...] | None, Declared]:
    """The labels of the scores that a labels.txt has, and what is said of a model without a contract, its other labels among it.

    Labels in the version's folder come before those of the policy, and these before those of files in the model's folder. What
    comes before another replaces only the labels of the same output: of the scores, unless the policy names outputs.

    Raises InvalidModel for a file that cannot be read or, if the config names it, is not there.
    """
    policy, triton, named_by = settings
    declared = declare(policy, triton)
    check: Callable[[bytes], None] | None = None if signed is None else partial(signed.check_read, LABELS_FILE)
    labels = read_labels(version_labels_path(repository, name, version), check)
    if not triton.label_files:
        if labels is None and not policy.labels:
            labels = read_labels(labels_path(repository, name))
        return labels, declared
    found = {output: _read(path) for output, path in label_paths(repository / name, triton).items()}
    whence = named_by if declared.labels else CONFIG_FILE
    return labels, declared._replace(labels=found | dict(declared.labels), labels_from=whence)


def _read(path: Path) -> tuple[str, ...]:
    labels = read_labels(path)
    if labels is None:
        raise InvalidModel(f"{CONFIG_FILE}: there is no file {path.name!r} in the model's folder")
    return labels
