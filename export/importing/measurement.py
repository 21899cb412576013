"""Measures an imported model on a whole labelled folder, through the code that serves it."""

import numpy as np

from export.data.image_files import MAX_PIXELS
from export.evaluation.scores import Scores
from export.importing.pictures import LabelledFolder, require_labels
from export.progress import OnCount, ignore_progress
from service.errors import InvalidRequest, UserError
from service.model.inference import Model
from service.model.preprocessing import decode

_BATCH_ITEMS = 32


def measure_folder(served: Model, folder: LabelledFolder, on_count: OnCount = ignore_progress) -> Scores:
    """The first head's answers to every picture. Raises UserError if a class is none of the labels, or a picture is broken."""
    truth = require_labels(folder, served.contract.labels)
    spec, answers = served.contract.input, []
    for at in range(0, len(folder), _BATCH_ITEMS):
        batch = range(at, min(at + _BATCH_ITEMS, len(folder)))
        images = np.empty((len(batch), *spec.shape), spec.dtype)
        for index in batch:
            try:
                images[index - at] = decode(folder.encoded(index), spec, MAX_PIXELS)
            except InvalidRequest as error:
                raise UserError(f"{folder.paths[index]}: {error}") from None
        answers.append(served.predict(images)[0])
        on_count(batch.stop, len(folder))
    return Scores(served.contract.labels, truth, np.concatenate(answers))
