"""How a version gets to disk: one ONNX file with its contract, and then its whole folder into the repository in one step."""

import shutil
import tempfile
from pathlib import Path

import onnx

from service.errors import UserError
from service.model.contract import METADATA_KEY, Contract
from service.model.repository_layout import model_path, next_version


def write(graph: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Writes the graph with a contract as one file."""
    del graph.metadata_props[:]
    graph.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    onnx.checker.check_model(graph)
    onnx.save_model(graph, path, save_as_external_data=False)


def publish(version: Path, repository: Path, name: str) -> Path:
    """Copies a folder to the next free version in one step: a server that watches sees the whole of it or nothing."""
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
