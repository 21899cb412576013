"""Writes a version: one ONNX file with its contract, loaded as a server loads it, then the whole folder into the repository."""

import shutil
import tempfile
from pathlib import Path

import onnx

from service.errors import LoadError, UserError, first_line
from service.model import cpus
from service.model.contract import METADATA_KEY, PRODUCER, Contract
from service.model.inference import Model
from service.model.loading import load_model
from service.model.repository_layout import model_path, next_version


def write_model(graph: onnx.ModelProto, contract: Contract, path: Path) -> Model:
    """Writes a graph with a contract as one file, and loads it on the CPU, which replays its golden samples.

    Sets the metadata of `graph`.

    Raises:
        UserError: the graph is not valid, or the file cannot be served.
    """
    del graph.metadata_props[:]
    graph.producer_name = PRODUCER
    graph.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise UserError(f"{contract.precision}: the graph is not valid ONNX: {first_line(error)}") from None
    onnx.save_model(graph, path, save_as_external_data=False)
    try:
        return load_model(path, "cpu", cpus.cpu_budget())
    except LoadError as error:
        raise UserError(f"{contract.precision}: the exported file cannot be served: {error}") from None


def publish(version: Path, repository: Path, name: str) -> Path:
    """Copies the folder `version` to the next free version of a model and returns the path of its model file.

    The folder appears in the repository in one step, so that a server never sees a part of it.

    Raises:
        UserError: the repository cannot be written.
    """
    try:
        (repository / name).mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=repository / name))
        try:
            for file in version.iterdir():
                shutil.copyfile(file, staging / file.name)
            staging.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            while True:
                path = model_path(repository, name, next_version(repository, name))
                try:
                    staging.rename(path.parent)
                except OSError:
                    if not path.parent.is_dir():
                        raise
                    continue  # another export has just taken the number
                return path
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write to the repository {str(repository)!r}: {error.strerror}") from None
