"""Weights of classes and balanced sampling: by hand, and in a training."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from export.data import datasets
from export.training.class_balance import automatic_weights, balanced_order, given_weights, read_class_weights, summed_loss
from export.training.inference import predict_logits
from service.errors import UserError
from tests.unit.training.conftest import SETTINGS, metrics, trained


def test_automatic_weights_make_classes_weigh_the_same_and_images_one_in_the_mean() -> None:
    labels = np.array([0] * 50 + [1] * 10)
    weights = np.array(automatic_weights(labels, 2))
    assert weights.tolist() == [0.6, 3.0]
    assert (weights * np.bincount(labels)).tolist() == [30, 30]
    assert weights[labels].mean() == pytest.approx(1)


def test_a_balanced_epoch_has_as_many_images_of_every_class_and_none_again_before_all() -> None:
    labels = torch.tensor([0] * 50 + [1] * 4 + [3] * 10)
    order = balanced_order(labels, torch.Generator().manual_seed(0))
    assert torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(0)))
    assert not torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(1)))
    assert labels[order].bincount().tolist() == [21, 21, 0, 22]
    taken = order.bincount(minlength=64)
    assert taken[:50].max() == 1
    assert sorted(set(taken[50:54].tolist())) == [5, 6]
    assert sorted(set(taken[54:].tolist())) == [2, 3]


def test_a_heavy_class_does_not_take_the_labels_of_others() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    labels, weights = torch.tensor([0, 0, 1]), torch.tensor([0.5, 20.0])
    [gradient] = torch.autograd.grad(summed_loss(logits, labels, weights, 0.1), logits)
    assert gradient[:, 0] == pytest.approx([-0.225, -0.225, 9.0]), "0.45 times the weight of the image's own class"
    plain = summed_loss(logits, labels, None, 0.1)
    assert plain.item() == pytest.approx(3 * math.log(2))
    assert summed_loss(logits, labels, torch.ones(2), 0.1).item() == pytest.approx(plain.item())


def test_a_file_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.csv"
    file.write_text('class,weight\n"dog, small",2.5\n\ncat, 1\n')
    found = read_class_weights(file)
    assert given_weights(found, ("bird", "cat", "dog, small")) == (1.0, 1.0, 2.5)
    with pytest.raises(UserError, match="has 'dog, small', which the data do not have; their classes are 'bird', 'cat'"):
        given_weights(found, ("bird", "cat"))
    for text, said in {
        "cat,0": "line 1: cat,0; a CSV file", "cat,nan": "line 1: cat,nan", "cat,1\ndog": "line 2: dog", "cat,1\ncat,2": "'cat' is",
        "class,weight\n": "has no weights", "cat,two": "could not convert string to float", "\xff": "codec",
    }.items():  # fmt: skip
        file.write_text(text, "latin-1")
        with pytest.raises(UserError, match=said) as raised:
            read_class_weights(file)
        assert str(raised.value).startswith(f"--class-weights {file}: ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("balanced_sampling", [False, True])
def test_the_epoch_is_chosen_by_what_is_trained_for(tmp_path: Path, few: datasets.Dataset, balanced_sampling: bool) -> None:
    given = automatic_weights(few.validation.labels, 10) if balanced_sampling else (5.0, *[1.0] * 9)
    settings = dataclasses.replace(
        SETTINGS, epochs=1, ema_decay=0.0, balanced_sampling=balanced_sampling, class_weights=() if balanced_sampling else given
    )
    checkpoint = trained(tmp_path, few, settings)
    [line] = metrics(tmp_path)
    logits, truth = torch.from_numpy(predict_logits(checkpoint, few.validation.pixels)), torch.from_numpy(few.validation.labels)
    assert line["validation_loss"] == pytest.approx(functional.cross_entropy(logits, truth, torch.tensor(given)).item(), rel=1e-5)
    recalls = [(logits.argmax(1) == truth)[truth == label].double().mean().item() for label in range(10)]
    assert line["validation_recalls"] == pytest.approx(recalls)
    assert line["validation_balanced_accuracy"] == pytest.approx(sum(recalls) / 10)
