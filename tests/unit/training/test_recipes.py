"""The recipes."""

import pytest

from export.networks import architectures
from export.training import recipes
from export.training.recipes import Settings


def test_recipes_depend_on_the_network_and_the_number_of_pictures() -> None:
    assert recipes.settings("article-cnn", 55_000, epochs=5) == Settings("article-cnn", 5, 128, 4e-3, label_smoothing=0.1)
    small = recipes.settings("article-cnn:kernel=5", 1_257)
    assert (small.epochs, small.batch_size, small.learning_rate) == (20, 32, 2e-3)
    assert recipes.settings("article-cnn", 55_000, batch_size=512, epochs=None).learning_rate == pytest.approx(8e-3)
    assert recipes.settings("resnet18", 50_000, batch_size=64).learning_rate == pytest.approx(0.05)
    given = recipes.settings("resnet18", 50_000, learning_rate=0.03, batch_size=64, weight_decay=0.0)
    assert (given.learning_rate, given.batch_size, given.weight_decay, given.optimizer) == (0.03, 64, 0.0, "sgd")
    assert recipes.settings("resnet18", 50_000, optimizer="adam").learning_rate == pytest.approx(4e-3)
    assert recipes.settings("article-cnn", 50_000, optimizer="sgd").learning_rate == pytest.approx(0.1)
    for name in recipes.RECIPES:
        assert name in architectures.NETWORKS
        assert name in recipes.describe()
