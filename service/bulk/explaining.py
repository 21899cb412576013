"""Pictures of what spoke for each answer, in a folder of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from service.bulk.columns import reason
from service.bulk.pictures import Picture
from service.bulk.safe_names import safe_name
from service.client import CallFailed, Explanation
from service.errors import UserError


class Explainer(Protocol):
    """A client."""

    def explain(self, images: list[str | bytes], model: str, *, version: str) -> list[Explanation]:
        """See `Client.explain`."""


def explain_into(
    folder: Path, client: Explainer, found: Iterator[Picture], model: str, version: str
) -> Iterator[tuple[Picture, Explanation | str, Path]]:
    """Writes `folder`/NAME.png for each picture, never over a file that is there.

    Yields the picture, its explanation, or why there is none, and the file.

    Raises:
        UserError: the folder cannot be made or written.
        CallFailed: what concerns all pictures, such as NOT_FOUND.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in found:
            if picture.image is None:
                yield picture, picture.error, folder
                continue
            try:
                [explanation] = client.explain([picture.image], model, version=version)
            except (CallFailed, UserError) as error:
                if isinstance(error, CallFailed) and not (error.code == "INVALID_ARGUMENT" and error.field.startswith("items[0].")):
                    raise
                yield picture, reason(error, picture.name, picture.path or picture.name), folder
                continue
            yield picture, explanation, _write(folder, picture.name, explanation.overlay)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror}") from None


def _write(folder: Path, name: str, content: bytes) -> Path:
    stem = safe_name(name)
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}_{number}.png")
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            number += 1
            continue
        return path
