"""Measures an imported model on a whole labelled folder, through the code that serves it."""

from export.data.labelled_pictures import ALL, LabelledPictures
from export.evaluation.folder import measure
from export.evaluation.scores import Scores
from export.importing.pictures import LabelledFolder, require_labels
from export.progress import OnCount, ignore_progress
from service.errors import UserError
from service.model.inference import Model


def measure_folder(served: Model, folder: LabelledFolder, on_count: OnCount = ignore_progress) -> Scores:
    """The first head's answers to every picture. Raises UserError if a class is none of the labels, or a picture is broken."""
    require_labels(folder, served.contract.labels)
    pictures = LabelledPictures(
        folder.name, ALL, folder.labels, folder.truth, path=lambda index: str(folder.paths[index]), encoded=folder.encoded
    )
    found = measure(served, pictures, on_count=on_count)
    for index, problem in found.broken.items():
        raise UserError(f"{folder.paths[index]}: {problem}")
    return found.scores
