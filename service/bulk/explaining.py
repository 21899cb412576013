"""Pictures of what spoke for each answer, in a folder of their own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from service.bulk.columns import reason
from service.bulk.path_set import PathSet
from service.bulk.pictures import Picture
from service.bulk.results_folder import ResultsFolder
from service.bulk.safe_names import safe_name
from service.bulk.whole_file import beside_of, put
from service.client import CallFailed, Explanation
from service.client.messages import item_at_fault
from service.errors import UserError

_OF_ONE_PICTURE = ("RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED")
_RETRY_SECONDS = 0.2


class Explainer(Protocol):
    """A client."""

    def explain(self, images: list[str | bytes], model: str, *, version: str) -> list[Explanation]:
        """See `Client.explain`."""


def explain_into(
    folder: Path,
    client: Explainer,
    found: Iterator[Picture],
    model: str,
    version: str,
    wait_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Picture, Explanation | str, Path]]:
    """Writes `folder`/NAME.png for each picture, whole, and never over a file that is there: the next one has a number.

    Yields the picture, its explanation, or why there is none, and the file. A picture that finds the server busy or restarting is
    sent again, for `wait_seconds`.

    Raises:
        UserError: the folder cannot be made or written.
        CallFailed: what concerns all pictures, such as NOT_FOUND.
    """
    ResultsFolder(folder).make("--explain")
    written = PathSet()
    try:
        for picture in found:
            if picture.image is None:
                yield picture, picture.error, folder
                continue
            try:
                explanation = _explained(client, picture.image, model, version, wait_seconds, sleep)
            except (CallFailed, UserError) as error:
                if isinstance(error, CallFailed) and not _is_of_the_picture(error):
                    raise
                yield picture, reason(error, picture.name, picture.path or picture.name), folder
                continue
            yield picture, explanation, _write(folder, picture.name, explanation.overlay, written)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror}") from None


def _explained(
    client: Explainer, image: str | bytes, model: str, version: str, wait_seconds: float, sleep: Callable[[float], None]
) -> Explanation:
    waited = 0.0
    while True:
        try:
            [explanation] = client.explain([image], model, version=version)
        except CallFailed as error:
            is_busy = error.code == "UNAVAILABLE" or (error.code == "RESOURCE_EXHAUSTED" and error.retry_after_seconds > 0)
            if not is_busy or waited >= wait_seconds:
                raise
            pause = min(error.retry_after_seconds or _RETRY_SECONDS, wait_seconds - waited)
            waited += pause
            sleep(pause)
        else:
            return explanation


def _is_of_the_picture(error: CallFailed) -> bool:
    """Whether others may still be explained. An invalid field that is not the picture is the same for all."""
    if error.code == "INVALID_ARGUMENT":
        return item_at_fault(error) is not None
    return error.code in _OF_ONE_PICTURE


def _write(folder: Path, name: str, content: bytes, written: PathSet) -> Path:
    """The file, which is there already if an earlier run has written the same; no other picture of this run has it."""
    stem = safe_name(name)
    beside = beside_of(folder / stem, name)
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}_{number}.png")
        if path.name not in written and put(content, path, beside):
            written.add(path.name)
            return path
        number += 1
