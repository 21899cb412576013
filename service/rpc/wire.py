"""Serialised responses put together from bytes: protobuf varints, and a writer each for ClassifyResponse and ModelInferResponse.

A serialised message is its fields one after the other, so the fields that are the same in every response of a model are serialised
once. Writing a response so takes a fraction of the time of building the message. The byte constants are field keys of
classifier.proto and open_inference.proto; tests compare the results with protobuf's own serialisation.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from service.model.contract import Head
from service.open_inference.tensors import DATATYPES
from service.pb.convoy.v1 import classifier_pb2
from service.pb.inference import open_inference_pb2
from service.requests.phases import Phases

_ONE_BYTE: Final = [bytes([number]) for number in range(128)]

_PROBABILITY: Final = b"\x1d"  # Prediction.probability, 32 bits
_SCORE: Final = b"\x25"  # Prediction.score, 32 bits
_PREDICTION: Final = b"\x0a"  # ItemResult.predictions, a message
_ID: Final = b"\x1a"  # ClassifyResponse.id and ModelInferResponse.id
_RESULT: Final = b"\x22"  # ClassifyResponse.results, a message
_SMALL_RESULT: Final = [_RESULT + size for size in _ONE_BYTE]  # with the sizes below 128
_PHASES: Final = struct.Struct("<BBBdBd")  # ClassifyResponse.phases with queue_seconds and inference_seconds
_PHASES_DECODED: Final = struct.Struct("<BBBdBdBd")  # and decode_seconds
_FLOAT: Final = struct.Struct("<f")


def varint(number: int) -> bytes:
    """A non-negative number as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 128:
        return _ONE_BYTE[number]
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


@cache
def _struct(size: int) -> struct.Struct:
    """So many bytes, and a number behind them."""
    return struct.Struct(f"<{size}sf")


class ClassifyResponseWriter:
    """Writes the serialised `ClassifyResponse`s of one version of a model with these heads; one without a contract has none."""

    def __init__(
        self, model: str, version: str, labels: Sequence[str], heads: Sequence[Head] = (), probabilities: bool = True
    ) -> None:
        """The numbers are `probabilities`, or else scores."""
        threshold = heads[0].threshold if heads else None
        self._head = classifier_pb2.ClassifyResponse(model=model, version=version, threshold=threshold).SerializeToString()
        self._labels = self._label_fields(labels, _PROBABILITY if probabilities else _SCORE)
        self._packs = [_struct(len(field)).pack for field in self._labels]  # a field and its number, in one step
        self._others = heads[1:]
        self.has_other_heads = len(heads) > 1

    def write(
        self,
        request_id: str,
        phases: Phases,
        results: Iterable[Iterable[tuple[int, float]]],
        others: Sequence[Sequence[Iterable[tuple[int, float]]]] = (),
    ) -> bytes:
        """One response.

        `results` has for each item its (label index, number), best first, and `others` the same of each further head.
        """
        if others:
            return self._write_heads(request_id, phases, results, others)
        labels, packs = self._labels, self._packs
        parts = [self._head]
        if request_id:
            text = request_id.encode()
            parts += (_ID, varint(len(text)), text)
        for predictions in results:
            result = b"".join([packs[index](labels[index], value) for index, value in predictions])
            size = len(result)
            parts += (_SMALL_RESULT[size] if size < 128 else _RESULT + varint(size), result)
        decode, queue, inference = phases
        if decode is None:
            parts.append(_PHASES.pack(0x2A, 18, 0x11, queue, 0x19, inference))
        else:
            parts.append(_PHASES_DECODED.pack(0x2A, 27, 0x09, decode, 0x11, queue, 0x19, inference))
        return b"".join(parts)

    def _label_fields(self, labels: Sequence[str], number: bytes) -> list[bytes]:
        """For each label, a field of `predictions` but for its number, of which `number` is the key."""
        fields = []
        for index, label in enumerate(labels):
            prediction = classifier_pb2.Prediction(label=label, index=index).SerializeToString() + number
            fields.append(_PREDICTION + varint(len(prediction) + _FLOAT.size) + prediction)
        return fields

    def _write_heads(
        self,
        request_id: str,
        phases: Phases,
        results: Iterable[Iterable[tuple[int, float]]],
        others: Sequence[Sequence[Iterable[tuple[int, float]]]],
    ) -> bytes:
        """As a message: models with several heads are few, and take long."""
        response = classifier_pb2.ClassifyResponse.FromString(self.write(request_id, phases, results))
        for at, result in enumerate(response.results):
            for head, found in zip(self._others, others, strict=True):
                answer = result.heads.add(name=head.name, threshold=head.threshold)
                for index, probability in found[at]:
                    answer.predictions.add(label=head.labels[index], index=index, probability=probability)
        return response.SerializeToString()


def with_embeddings(response: bytes, rows: NDArray[Any]) -> bytes:
    """A serialised `ClassifyResponse` with a row float32[n,D] in each result."""
    message = classifier_pb2.ClassifyResponse.FromString(response)
    for result, row in zip(message.results, rows.astype("<f4"), strict=True):
        content = row.tobytes()
        result.MergeFromString(b"\x1a" + varint(len(content)) + content)  # ItemResult.embedding
    return message.SerializeToString()


def classify_stream_response(request_id: str, index: int, response: bytes) -> bytes:
    """A serialised `ClassifyStreamResponse` with a serialised `ClassifyResponse` in it."""
    parts: list[bytes] = []
    if request_id:
        text = request_id.encode()
        parts += (b"\x0a", varint(len(text)), text)  # ClassifyStreamResponse.id
    if index:
        parts += (b"\x10", varint(index))  # ClassifyStreamResponse.index
    parts += (b"\x1a", varint(len(response)), response)  # ClassifyStreamResponse.response
    return b"".join(parts)


class Outputs(Protocol):
    """What a request is answered with."""

    @property
    def items(self) -> int:
        """Of the request."""

    @property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """By name, [n, *shape]."""

    def content(self, name: str) -> bytes:
        """The bytes of one of them."""


class ModelInferResponseWriter:
    """Writes the serialised `ModelInferResponse`s of one version of a model, with raw contents.

    Attributes:
        names: of all outputs that are given.
    """

    def __init__(self, model: str, version: str, names: Sequence[str]) -> None:
        self.names = names
        self._head = open_inference_pb2.ModelInferResponse(model_name=model, model_version=version).SerializeToString()
        self._fields: dict[tuple[str, int], tuple[bytes, bytes]] = {}  # by output and number of items: bounded

    def write(self, request_id: str, answer: Outputs, names: Sequence[str]) -> bytes:
        """One response with the outputs of these names."""
        items = answer.items
        fields = self._fields
        parts: list[bytes] = [self._head]
        contents: list[bytes] = []
        if request_id:
            text = request_id.encode()
            parts += (_ID, varint(len(text)), text)
        for name in names:
            tensor, content_head = fields.get((name, items)) or self._make_fields(name, items, answer.outputs[name])
            parts.append(tensor)
            contents += (content_head, answer.content(name))
        return b"".join(parts + contents)

    def _make_fields(self, name: str, items: int, array: NDArray[Any]) -> tuple[bytes, bytes]:
        """The `outputs` field for an array of this shape, and the bytes before its elements in `raw_output_contents`."""
        tensor = open_inference_pb2.ModelInferResponse.InferOutputTensor(
            name=name, datatype=DATATYPES[array.dtype], shape=array.shape
        )
        content = open_inference_pb2.ModelInferResponse(raw_output_contents=[bytes(array.nbytes)]).SerializeToString()
        fields = open_inference_pb2.ModelInferResponse(outputs=[tensor]).SerializeToString(), content[: len(content) - array.nbytes]
        self._fields[name, items] = fields
        return fields


def model_stream_infer_response(response: bytes) -> bytes:
    """A serialised `ModelStreamInferResponse` with a serialised `ModelInferResponse` in it."""
    return b"".join((b"\x12", varint(len(response)), response))  # ModelStreamInferResponse.infer_response
