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


def test_the_recipe_of_the_articles_is_the_same_for_every_network_and_number_of_pictures() -> None:
    article = recipes.recipe("resnet18", "article")
    for network, items, channels in (("article-cnn", 55_000, 1), ("step-by-step", 900, 3), ("resnet18", 45_000, 3)):
        found = recipes.settings(network, items, article, channels, epochs=None, mean=None, std=None)
        mean, std = (0.0,) * channels, (1.0,) * channels
        assert found == Settings(network, 5, 64, 1e-3, optimizer="adam", schedule="constant", mean=mean, std=std)
        assert found.given()["mean"] == mean, "shown"
    assert (article.shift_pixels, article.flip) == (0, False)
    changed = recipes.settings("article-cnn", 900, article, 3, epochs=2, batch_size=32, mean=(0.5, 0.5, 0.5), label_smoothing=0.1)
    assert (changed.epochs, changed.batch_size, changed.learning_rate, changed.label_smoothing) == (2, 32, 1e-3, 0.1)
    assert (changed.mean, changed.std) == ((0.5,) * 3, (1.0,) * 3)
    assert recipes.settings("article-cnn", 900, article, optimizer="sgd").learning_rate == pytest.approx(0.05), (
        "as of a recipe with it"
    )
    from_file = recipes.settings("article-cnn", 900, article, weights="w.pth")
    assert (from_file.head_learning_rate, from_file.learning_rate) == (1e-3, 1e-4), "as with the networks' own recipes"
    assert "recipe article" in recipes.describe()
    assert recipes.settings("article-cnn", 900, schedule=None).schedule == "one-cycle"
