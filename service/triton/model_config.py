"""What a `config.pbtxt` says of a model beside its policy, as data: its files, its tensors, its warm-up."""

from collections.abc import Mapping
from typing import NamedTuple

from service.model.repository_layout import MODEL_FILE

Shape = tuple[int, ...]

MAX_RUNS = 1000
"""More would only keep the model from serving."""


class ConfiguredTensor(NamedTuple):
    """An input or output as the config has it. `reshape` is the graph's shape, None if it is `dims`; -1 is any size."""

    name: str
    data_type: str
    dims: Shape
    reshape: Shape | None = None


class WarmupSample(NamedTuple):
    """One batch: `items` alike of what `kind` says, run `runs` times.

    Attributes:
        input: the name of the model's input.
        data_type: its data type, as `TYPE_FP32`.
        dims: as the input's.
        kind: `zero_data`, `random_data` or `input_data_file`.
        file: the name of the file with the elements of one item.
    """

    name: str
    input: str
    data_type: str
    dims: tuple[int, ...]
    items: int
    runs: int
    kind: str
    file: str = ""


class TritonSettings(NamedTuple):
    """What a config.pbtxt says of a model beside its policy; without one, what holds for any model.

    Attributes:
        model_file: the model file's name in a version's folder.
        label_files: outputs that have labels, each with the name of their file in the model's folder.
        batches: whether tensors have a batch dimension that `dims` leave out (max_batch_size above 0).
        inputs: the tensors that clients send.
        outputs: the tensors that clients get.
        warmup: what the model is run on before it serves.
        accelerator: the provider that it names as an accelerator; empty if none.
        level_timeouts: by the priority levels that have a policy of their own: seconds of requests that set none, 0 for no limit.
        unused: fields of the file that are not used.
    """

    model_file: str = MODEL_FILE
    label_files: tuple[tuple[str, str], ...] = ()
    batches: bool = True
    inputs: tuple[ConfiguredTensor, ...] = ()
    outputs: tuple[ConfiguredTensor, ...] = ()
    warmup: tuple[WarmupSample, ...] = ()
    accelerator: str = ""
    level_timeouts: Mapping[int, float] = {}
    unused: tuple[str, ...] = ()


NO_TRITON = TritonSettings()
