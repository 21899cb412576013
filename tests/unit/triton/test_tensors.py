"""The tensors of a `config.pbtxt` against those of the graph."""

import numpy as np
import pytest

from service.errors import InvalidModel
from service.model.signature import TensorSpec
from service.triton.model_config import ConfiguredTensor
from service.triton.tensors import TensorForms, tensor_forms

FLOAT = np.dtype(np.float32)
TAKEN = TensorSpec("x", FLOAT, (3, 2, 2))
SCORES, FEATURES = TensorSpec("scores", FLOAT, (5, 1, 1)), TensorSpec("features", FLOAT, (4,))
Shape = tuple[int, ...]


def forms(
    batches: bool, dims: Shape, out: Shape, reshape: Shape | None = None, out_reshape: Shape | None = None
) -> TensorForms | None:
    inputs = [ConfiguredTensor("x", "TYPE_FP32", dims, reshape)]
    return tensor_forms(batches, inputs, [ConfiguredTensor("scores", "TYPE_FP32", out, out_reshape)], TAKEN, [SCORES])


@pytest.mark.parametrize("dims", [(3, 2, 2), (3, -1, -1)])
def test_shapes_that_are_the_graphs_need_no_other_form(dims: Shape) -> None:
    assert forms(True, dims, (5, 1, 1)) is None
    assert forms(False, (-1, *dims), (-1, 5, 1, 1)) is None
    assert tensor_forms(False, [], [], TAKEN, [SCORES]) is None


@pytest.mark.parametrize(
    ("found", "client", "answer"),
    [
        (forms(True, (12,), (5,), (3, 2, 2), (5, 1, 1)), (2, 12), (2, 5)),
        (forms(True, (-1, 4), (5, 1, 1), (3, 2, 2)), (2, 3, 4), (2, 5, 1, 1)),
        (forms(False, (3, 2, 2), (5,), (1, 3, 2, 2), (1, 5, 1, 1)), (3, 2, 2), (5,)),
        (forms(False, (1, 3, 2, 2), (1, 5, 1, 1)), (1, 3, 2, 2), (1, 5, 1, 1)),
        (forms(False, (1, 3, 2, 2), (-1, 5, 1, 1)), (1, 3, 2, 2), (1, 5, 1, 1)),
        (forms(False, (2, 3, 2, 2), (10,), None, (2, 5, 1, 1)), (2, 3, 2, 2), (10,)),
        (forms(False, (-1, 12), (-1, 5), (-1, 3, 2, 2), (-1, 5, 1, 1)), (2, 12), (2, 5)),
    ],
)
def test_a_clients_tensor_becomes_items_and_the_answer_has_the_clients_shape(
    found: TensorForms | None, client: Shape, answer: Shape
) -> None:
    assert found is not None
    assert found.fits_input(client)
    assert not found.fits_input((*client, 1))
    sent = np.arange(np.prod(client), dtype=np.float32).reshape(client)
    rows = found.to_items(sent, TAKEN)
    assert rows.shape[1:] == TAKEN.shape
    np.testing.assert_array_equal(rows.ravel(), sent.ravel())
    scores = np.random.default_rng(0).random((len(rows), *SCORES.shape))
    [(name, given)] = found.from_items({"scores": scores}).items()
    assert (name, given.shape) == ("scores", answer)


def test_outputs_that_are_not_listed_are_not_offered() -> None:
    features = [ConfiguredTensor("features", "TYPE_FP32", (4,))]
    found = tensor_forms(True, [], features, TAKEN, [SCORES, FEATURES])
    assert found == TensorForms(0, (3, 2, 2), {"features": (4,)})
    listed = [ConfiguredTensor("x", "TYPE_FP32", (1, 3, 2, 2))]
    whole = tensor_forms(False, listed, [], TAKEN, [SCORES, FEATURES])
    assert whole == TensorForms(1, (1, 3, 2, 2), {"scores": (1, 5, 1, 1), "features": (1, 4)})


WRONG: list[tuple[bool, Shape, Shape | None]] = [
    (True, (3, 2), None), (True, (1, 3, 2, 2), None), (True, (3, 2, 3), None), (True, (12,), None), (True, (13,), (3, 2, 2)),
    (True, (-1, -1), (3, 2, 2)), (True, (5, -1), (3, 2, 2)), (True, (12,), ()), (False, (3, 2, 2), None),
    (False, (3, 2, 3, 2), None), (False, (12,), (-1, 3, 2, 2)), (False, (13,), (1, 3, 2, 2)), (False, (12,), ()),
]  # fmt: skip


@pytest.mark.parametrize(("batches", "dims", "reshape"), WRONG)
def test_a_shape_that_is_not_the_graphs_is_said_with_what_the_graph_has(batches: bool, dims: Shape, reshape: Shape | None) -> None:
    said = r"^config.pbtxt: input 'x' has dims \[.*\]; in the graph it is \[.*3, 2, 2\]"
    with pytest.raises(InvalidModel, match=said) as refused:
        forms(batches, dims, (5, 1, 1) if batches else (-1, 5, 1, 1), reshape)
    assert ("max_batch_size is above 0" if batches else "max_batch_size is 0") in str(refused.value)


def test_names_and_types_are_those_of_the_graph() -> None:
    with pytest.raises(InvalidModel, match=r"config.pbtxt: the graph has no input 'y'; it takes 'x'"):
        tensor_forms(True, [ConfiguredTensor("y", "TYPE_FP32", (3,))], [], TAKEN, [SCORES])
    with pytest.raises(InvalidModel, match=r"config.pbtxt: the graph has no output 'y'; it gives scores, features"):
        tensor_forms(True, [], [ConfiguredTensor("y", "TYPE_FP32", (3,))], TAKEN, [SCORES, FEATURES])
    with pytest.raises(InvalidModel, match=r"config.pbtxt: input 'x' is TYPE_UINT8; in the graph it is TYPE_FP32"):
        tensor_forms(True, [ConfiguredTensor("x", "TYPE_UINT8", (3, 2, 2))], [], TAKEN, [SCORES])
    with pytest.raises(InvalidModel, match=r"config.pbtxt: output 'scores' is TYPE_STRING; in the graph it is TYPE_FP32"):
        tensor_forms(True, [], [ConfiguredTensor("scores", "TYPE_STRING", (5, 1, 1))], TAKEN, [SCORES])


def test_a_tensor_is_listed_once() -> None:
    image, scores = ConfiguredTensor("x", "TYPE_FP32", (3, 2, 2)), ConfiguredTensor("scores", "TYPE_FP32", (5, 1, 1))
    with pytest.raises(InvalidModel, match=r"^config.pbtxt: input 'x' is there 2 times; accepted is once"):
        tensor_forms(True, [image, image], [scores], TAKEN, [SCORES])
    with pytest.raises(InvalidModel, match=r"^config.pbtxt: output 'scores' is there 3 times"):
        tensor_forms(True, [image], [scores, scores, scores], TAKEN, [SCORES])
