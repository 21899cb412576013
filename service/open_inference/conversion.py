"""Inference requests of the Open Inference Protocol, for gRPC and REST alike: to the classifier's query, and its answer to outputs.

An API parses a request into an InputTensor and RequestedOutputs, asks the classifier with `make_query` of these, and writes
the tensors that `select_outputs` takes from the answer. Errors name fields as the protocol does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.message_limits import largest_request_bytes
from service.engine.query import Item, Query
from service.engine.request import wrong_count
from service.engine.served_version import ServedVersion
from service.engine.top_k import best_labels
from service.errors import InvalidRequest, RequestError
from service.model.signature import TensorSpec
from service.observability.trace_context import TraceContext
from service.open_inference.parameters import RequestedOutput, parse_schedule
from service.open_inference.shared_memory import MemoryRange
from service.open_inference.tensors import (
    BYTES,
    DATATYPES,
    DTYPES,
    InputTensor,
    OutputTensor,
    count_items,
    describe_tensor,
    elements_from_memory,
)
from service.requests.principal import UNKNOWN, Principal

_FIELDS = {"priority": "parameters[priority]", "timeout_seconds": "parameters[timeout]"}


def make_query(
    model: str,
    version: str,
    tensor: InputTensor,
    requested: Sequence[RequestedOutput],
    parameters: Mapping[str, Any],
    deadline: float = math.inf,
    trace: TraceContext | None = None,
    request_id: str = "",
    ignore_unknown: bool = False,
    principal: Principal = UNKNOWN,
    metadata: Iterable[tuple[str, str | bytes]] = (),
) -> Query:
    """The classifier's query for a request.

    `deadline` is in `time.monotonic` seconds, `trace` and `request_id` are the client's, `principal` is who sent it, and `metadata`
    is what came beside it. The classifier checks the tensor and the requested outputs against the model before it computes. Raises
    as `parse_schedule`.
    """
    priority, timeout_seconds = parse_schedule(parameters, ignore_unknown) if parameters else (0, 0.0)
    elements = tensor.elements
    validate = partial(_check_against_model, tensor, requested)
    items, array = ([Item(element, True) for element in elements], None) if isinstance(elements, list) else ((), elements)
    return Query(
        model, items, version, 1, priority, timeout_seconds, deadline, array, validate, trace, request_id, principal, False,
        metadata,
    )  # fmt: skip


def rename_error_field(error: RequestError) -> RequestError:
    """Renames the field of an error from the classifier's word to the protocol's; returns the error."""
    if isinstance(error, InvalidRequest):
        error.field = "inputs[0]" if error.field.startswith("items") else _FIELDS.get(error.field, error.field)
    return error


def read_from_memory(
    classifier: Classifier, model: str, version: str, name: str, datatype: str, shape: Sequence[int], memory: MemoryRange
) -> InputTensor:
    """The input that is in shared memory, of at most the bytes of the model's largest request.

    Nothing is read before it is certain that there is such a model and that it takes a tensor of this type and shape: a region may
    have gigabytes. Raises RequestError.
    """

    def validate(served: ServedVersion) -> None:
        spec, limit = served.model.input, served.policy.max_request_items
        if name != spec.name:
            raise _wrong_name(served, name)
        items = count_items(datatype, shape)
        forms = served.forms
        if not served.model.takes_pictures if datatype == BYTES else not _fits(served, DTYPES[datatype], shape):
            raise _wrong_type(served, datatype, shape)
        if spec.is_picture_file and datatype != BYTES:
            items = 1
        if forms is not None and forms.items and datatype != BYTES:
            items = forms.items
        if not 0 < items <= limit:
            raise wrong_count(items, limit)
        most = largest_request_bytes(served.policy, spec.size_bytes, images=served.model.takes_pictures)
        if memory.byte_size > most:
            raise InvalidRequest(
                f"the input has {memory.byte_size} bytes in shared memory; model {served.name!r} takes at most {most}", "inputs[0]"
            )

    try:
        classifier.check(model, version, validate)
    except RequestError as error:
        raise rename_error_field(error) from None
    return InputTensor(name, datatype, shape, elements_from_memory(datatype, shape, memory))


def select_outputs(answer: Answer, requested: Sequence[RequestedOutput]) -> list[OutputTensor]:
    """The requested outputs, in their order; all of them, in the model's order, if none is requested.

    Raises `Answer.not_finite` if classes are asked for and a score is NaN.
    """
    outputs = answer.outputs
    if not requested:
        return [OutputTensor(name, DATATYPES[array.dtype], array.shape, array) for name, array in outputs.items()]
    served = answer.served
    selected = []
    for name, classes, memory in requested:
        array = outputs[name]
        if classes:
            labels = served.model.output_labels[name]
            scores = array.reshape(len(answer.scores), -1)
            if labels and scores.shape[1] != len(labels):  # one number for two labels
                scores = answer.scores
            if np.isnan(scores).any():  # which has no place in an order
                raise answer.not_finite(f"model {served.name!r} gave NaN for this request")
            texts = [
                [f"{score:f}:{index}{f':{labels[index]}' if labels else ''}".encode() for index, score in row]
                for row in best_labels(scores, min(classes, scores.shape[1]))
            ]
            elements = [text for row in texts for text in row]
            forms = served.forms
            shape = (len(elements),) if forms is not None and forms.items else (len(texts), len(texts[0]))
            selected.append(OutputTensor(name, BYTES, shape, elements, memory))
        else:
            selected.append(OutputTensor(name, DATATYPES[array.dtype], array.shape, array, memory))
    return selected


def _check_against_model(
    tensor: InputTensor, requested: Sequence[RequestedOutput], served: ServedVersion
) -> NDArray[Any] | Sequence[Item] | None:
    """Raises InvalidRequest if the model does not take the tensor or does not have a requested output.

    Returns the tensor in the graph's shape, if that is not the client's; of the bytes of one picture file, UINT8 [n], that item.
    """
    model = served.model
    spec = model.input
    if tensor.name != spec.name:
        raise _wrong_name(served, tensor.name)
    elements = tensor.elements
    if isinstance(elements, list):
        if not model.takes_pictures:
            raise _wrong_type(served, tensor.datatype, tensor.shape)
    elif spec.is_picture_file:
        if not _fits(served, elements.dtype, elements.shape):
            raise _wrong_type(served, tensor.datatype, tensor.shape)
        _check_requested(served, requested, 1)
        return [Item(elements.tobytes(), True)]
    elif served.forms is not None:
        if not _fits(served, elements.dtype, elements.shape):
            raise _wrong_type(served, tensor.datatype, tensor.shape)
        rows = served.forms.to_items(elements, spec)
        _check_requested(served, requested, len(rows))
        return rows
    elif elements.dtype != spec.dtype or elements.shape[1:] != spec.shape:
        raise _wrong_type(served, tensor.datatype, tensor.shape)
    if requested:
        _check_requested(served, requested, tensor.shape[0])
    return None


def _fits(served: ServedVersion, dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    """Whether a tensor of numbers is what clients of the model send."""
    spec, forms = served.model.input, served.forms
    if spec.is_picture_file:
        return dtype == spec.dtype and len(shape) == 1
    return dtype == spec.dtype and (tuple(shape[1:]) == spec.shape if forms is None else forms.fits_input(shape))


def _wrong_name(served: ServedVersion, name: str) -> InvalidRequest:
    spec = served.model.input
    return InvalidRequest(f"model {served.name!r} has no input {name[:64]!r}; it takes {spec.name!r}", "inputs[0].name")


def _wrong_type(served: ServedVersion, datatype: str, shape: Sequence[int]) -> InvalidRequest:
    spec = served.model.input
    takes = describe_tensor(DATATYPES[spec.dtype], client_shape(served, spec))
    if served.model.takes_pictures:
        takes += " or BYTES [-1] of encoded images"
    field = "shape" if datatype == DATATYPES[spec.dtype] else "datatype"
    given = describe_tensor(datatype, shape)
    return InvalidRequest(f"input {spec.name!r} is {given}; model {served.name!r} takes {takes}", f"inputs[0].{field}")


def client_shape(served: ServedVersion, spec: TensorSpec) -> list[int]:
    """The shape of the input or an output for clients; -1 for a batch dimension."""
    forms = served.forms
    if spec.is_picture_file:
        return [-1]
    if forms is None:
        return [-1, *spec.shape]
    return forms.shape(forms.input if spec is served.model.input else forms.outputs[spec.name])


def offered_outputs(served: ServedVersion) -> Sequence[TensorSpec]:
    """The outputs that clients may ask for."""
    forms, outputs = served.forms, served.model.outputs
    return outputs if forms is None else [spec for spec in outputs if spec.name in forms.outputs]


def _check_requested(served: ServedVersion, requested: Sequence[RequestedOutput], items: int) -> None:
    specs: dict[str, TensorSpec] = {spec.name: spec for spec in offered_outputs(served)}
    names = set()
    for index, (name, classes, memory) in enumerate(requested):
        spec = specs.get(name)
        field = f"outputs[{index}]"
        if spec is None:
            raise InvalidRequest(f"model {served.name!r} has no output {name[:64]!r}; it gives {', '.join(specs)}", f"{field}.name")
        if name in names:
            raise InvalidRequest(f"output {name!r} is asked for twice", f"{field}.name")
        names.add(name)
        if classes and name not in served.model.output_labels:
            raise InvalidRequest(f"output {name!r} has no score for each class: classification is not offered on it", field)
        if memory is not None and not classes and memory.byte_size < items * spec.size_bytes:
            raise InvalidRequest(
                f"output {name!r} has {items * spec.size_bytes} bytes; its place in shared memory has {memory.byte_size}",
                f"{field}.parameters[shared_memory_byte_size]",
            )
