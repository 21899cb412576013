"""From a model file and its policy to a model that is warm, measured, and has its batcher."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from service.batcher import INLINE_SECONDS, Batcher
from service.config import Policy, Provider
from service.errors import InvalidModel
from service.model import Model, cpu_budget, load


class Loaded(NamedTuple):
    """A model, and seconds a batch by items in it."""

    model: Model
    measured: dict[int, float]


def load_model(path: Path, labels: tuple[str, ...] | None, policy: Policy, provider: Provider) -> Loaded:
    """Loads a model with as many threads as it can use, and measures it.

    A model that answers one item within the time of an inline batch is served with one thread: waking a second one costs it
    more than it gains, and the second core is wanted for the transport.

    Args:
        path: the model file.
        labels: names of the classes of a foreign model, if they are given.
        policy: how the model is served.
        provider: where it computes unless the policy says so.

    Raises:
        LoadError: it cannot be served.
    """
    provider = policy.provider or provider
    model = load(path, provider, 1, labels)
    if model.provider == "cpu" and cpu_budget() > 1 and model.measure(1)[1] > INLINE_SECONDS:
        model = load(path, provider, cpu_budget(), labels)
    return Loaded(model, model.measure(policy.max_batch_size))


def start_batcher(name: str, loaded: Loaded, policy: Policy, on_batch: Callable[[int], None]) -> Batcher:
    """The running batcher of a loaded model; `on_batch` is told the items of each batch that ran."""
    batcher = Batcher(
        loaded.model.predict,
        name=name,
        max_batch_items=policy.max_batch_size,
        max_queue_items=policy.max_queue_items,
        measured=loaded.measured,
        on_batch=on_batch,
    )
    batcher.start()
    return batcher


def read_labels(path: Path) -> tuple[str, ...] | None:
    """The lines of a `labels.txt`; None if there is none. Raises InvalidModel for one that cannot be used."""
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{path.name}: {error}") from None
    if "" in labels:
        raise InvalidModel(f"{path.name}: line {labels.index('') + 1} is empty; one label a line is accepted")
    return labels
