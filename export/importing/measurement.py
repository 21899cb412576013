"""Measures an imported model on labelled pictures, through the code that serves it."""

from export.data.labelled_pictures import LabelledPictures
from export.evaluation.folder import Measured, measure
from export.importing.pictures import require_labels
from export.progress import OnCount, ignore_progress
from service.model.inference import Model


def measure_folder(served: Model, folder: LabelledPictures, on_count: OnCount = ignore_progress) -> Measured:
    """The first head's answers to every picture that can be decoded. Raises UserError if a class is none of the labels."""
    require_labels(folder, served.contract.labels)
    return measure(served, folder, on_count=on_count)
