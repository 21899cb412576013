"""Reads a `config.pbtxt`: Triton's ModelConfig in protobuf's text format."""

import functools
import re
from pathlib import Path

from google.protobuf import text_format

from service.errors import UserError
from service.model.files import FileState, file_state
from service.model.text_files import read_text
from service.pb.inference.open_inference_pb2 import ModelConfig

CONFIG_FILE = "config.pbtxt"

MAX_BYTES = 256 * 1024
"""Some hundred times what people write; parsing so much takes a second or two, once."""

_UNKNOWN = re.compile(r'Message type "inference\.(?P<message>\w+(?:\.\w+)*)" has no field named "(?P<field>[^"]*)"')
_POSITION = re.compile(r"^\d+:\d+ : (?:'.*?': )?", re.S)


def config_path(repository: Path, name: str) -> Path:
    """The `config.pbtxt` of a model, which need not exist."""
    return repository / name / CONFIG_FILE


def read_config(path: Path) -> ModelConfig | None:
    """What a `config.pbtxt` holds; None if there is no such file. Not to be changed: others are given the same message.

    Raises UserError, which names the line, if it cannot be read, or has a field that Triton does not know.
    """
    found = _read(path, file_state(path))
    if isinstance(found, str):
        raise UserError(found)
    return found


@functools.lru_cache(maxsize=1024)  # every scan asks for those of all models
def _read(path: Path, _: FileState | None) -> ModelConfig | str | None:
    """What a file of this state holds, or what is wrong with it."""
    where = f"{path.parent.name}/{path.name}"
    try:
        return text_format.Parse(read_text(path, MAX_BYTES), ModelConfig())
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{where}: {error.strerror}"
    except text_format.ParseError as error:
        return f"{where}: line {error.GetLine() or 1}: {_reason(error)}"
    except ValueError as error:  # not text
        return f"{where}: {error}"


def _reason(error: text_format.ParseError) -> str:
    unknown = _UNKNOWN.search(str(error))
    if unknown is not None:
        return f"Triton's {unknown['message']} has no field {unknown['field']!r}"
    return _POSITION.sub("", str(error)).strip().splitlines()[0][:300]
