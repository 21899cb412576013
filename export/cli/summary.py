"""Scores, as JSON and as tables in the terminal, and what a lower precision costs and gains."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from export.cli.advice import never_right
from export.evaluation.multilabel import MultilabelScores
from export.evaluation.scores import ClassScore, Scores
from export.text import first_of, interval_or_dash, percent_or_dash

if TYPE_CHECKING:
    from export.convert.precision_cost import PrecisionComparison
    from export.training.pretrained import Loaded

_SHOWN_CLASSES = 20
_SHOWN_MISTAKES = 5
_SHOWN_WEIGHTS = 8
_TOP = 5
_TOP_FROM = 20
"""Of fewer labels, five hold the right one by chance too often to say much."""


def as_json(scores: Scores) -> dict[str, object]:
    """The scores without the single answers, of the classes that occur. Fractions are of 1; undefined values are null."""
    return {
        "items": scores.items,
        "correct": scores.correct,
        "accuracy": scores.accuracy,
        "accuracy_interval": scores.accuracy_interval,
        "balanced_accuracy": scores.balanced_accuracy,
        **({f"top_{_TOP}_accuracy": scores.top_accuracy(_TOP)} if len(scores.labels) > _TOP_FROM else {}),
        "cross_entropy": scores.cross_entropy,
        "temperature": scores.temperature,
        "calibration_error": scores.reliability.error,
        "calibration_error_before_temperature": scores.reliability_before.error,
        "classes": [vars(scores.classes[index]) for index in scores.occurring],
        "labels": [scores.labels[index] for index in scores.occurring],
        "confusion": scores.confusion.tolist(),
    }


def multilabel_as_json(scores: MultilabelScores) -> dict[str, object]:
    """The scores of labels of which a picture may have several. Fractions are of 1; undefined values are null."""
    precision, recall, f1 = scores.overall
    return {
        "items": scores.items,
        "threshold": scores.threshold,
        "mean_average_precision": scores.mean_average_precision,
        "micro_precision": precision,
        "micro_recall": recall,
        "micro_f1": f1,
        "exact": scores.exact,
        "classes": [vars(score) for score in scores.classes],
        "labels": scores.labels,
    }


def show_multilabel(scores: MultilabelScores, console: Console) -> None:
    """Prints a headline, and the scores of every label, or of those with the lowest average precision."""
    precision, recall, f1 = map(percent_or_dash, scores.overall)
    console.print(
        f"mean average precision as served: {scores.mean_average_precision:.2%} ({len(scores.labels)} labels, "
        f"{scores.items} images)\n"
        f"from a probability of {scores.threshold:g} on: precision {precision}, recall {recall}, F1 {f1}; "
        f"all labels of an image right: {scores.exact:.1%}\n",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    classes = sorted(scores.classes, key=lambda score: score.average_precision or 0.0)[:_SHOWN_CLASSES]
    title = f"the {_SHOWN_CLASSES} hardest of {len(scores.labels)} labels" if len(scores.labels) > _SHOWN_CLASSES else None
    table = Table("label", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for head in ("images", "precision", "recall", "F1", "average precision"):
        table.add_column(head, justify="right")
    for score in classes:
        shares = map(percent_or_dash, (score.precision, score.recall, score.f1, score.average_precision))
        table.add_row(Text(score.label), f"{score.items:,}", *shares)
    console.print(table)


def headline(scores: Scores) -> str:
    """Accuracy, calibration and the hardest class, a line each; of imbalanced classes the balanced accuracy first."""
    low, high = scores.accuracy_interval
    calibration = f"expected calibration error {scores.reliability.error:.2%}"
    if scores.temperature != 1.0:
        calibration += f" with the temperature of {scores.temperature:.3f}, {scores.reliability_before.error:.2%} without"
    hardest = scores.hardest
    balanced = f"balanced accuracy, the mean over the classes: {scores.balanced_accuracy:.2%}\n" if scores.imbalanced else ""
    top = f"the right label among the first {_TOP}: {scores.top_accuracy(_TOP):.2%}\n" if len(scores.labels) > _TOP_FROM else ""
    return (
        f"{balanced}"
        f"accuracy as served: {scores.accuracy:.2%} ({scores.correct} of {scores.items}; 95 % interval {low:.1%} to {high:.1%})\n"
        f"{top}"
        f"{calibration}; cross-entropy {scores.cross_entropy:.4f}\n"
        f"hardest class: {hardest.label!r}, {hardest.recall or 0.0:.1%} of {hardest.items} right"
        + "".join(f"\n{line}" for line in never_right(scores))
    )


def show_cost(cost: "PrecisionComparison", console: Console) -> None:
    """Prints the file of the lower precision beside the fp32 file and, for int8, the table of layers."""
    found = cost.quantization
    if found is not None:
        table = Table("layer", "operator", box=None, header_style="bold", pad_edge=False)
        for head in ("divergence", "labels changed"):
            table.add_column(head, justify="right")
        table.add_column("computed in")
        for row in found.layers:
            decided = Text("int8") if row.quantized else Text("float", style="bold")
            table.add_row(Text(row.layer), row.operator, f"{row.divergence:.1e}", f"{row.changed:.1%}", decided)
        console.print(table)
        methods = ", ".join(f"{name} {divergence:.1e}" for name, divergence in found.methods.items())
        console.print(
            f"divergence in nats from fp32, only this layer in int8, on {found.sensitivity_items} validation images; with all "
            f"layers in int8, by the method that takes the ranges from {found.calibration_items} training images: {methods}\n"
            f"validation: {found.reference_accuracy:.2%} in fp32, {found.accuracy:.2%} in int8 by {found.method}\n",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    table = Table("", box=None, header_style="bold", pad_edge=False)
    for head in ("test accuracy", "bytes", f"images/s (CPU, {cost.batch_items} at once)"):
        table.add_column(head, justify="right")
    for name, figures in (("fp32", cost.fp32), (cost.precision, cost.lower)):
        table.add_row(name, f"{figures.accuracy:.2%}", f"{figures.size_bytes:,}", f"{figures.images_per_second:,.0f}")
    console.print(table)


def show_loaded(loaded: "Loaded", console: Console) -> None:
    """Prints how much of a file of weights was loaded, and a table of what was not."""
    console.print(
        f"{loaded.file}: {len(loaded.loaded)} of the network's {len(loaded.loaded) + len(loaded.fresh)} tensors loaded; "
        f"{len(loaded.unused)} of the file not used{': ' if loaded.unused else ''}{first_of(loaded.unused, _SHOWN_WEIGHTS)}",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    if not loaded.fresh:
        return
    table = Table("starts fresh", "shape", "in the file", box=None, header_style="bold", pad_edge=False)
    for name, shape, given in loaded.fresh[:_SHOWN_WEIGHTS]:
        table.add_row(Text(name), _shape(shape), "-" if given is None else _shape(given))
    console.print(table)
    if len(loaded.fresh) > _SHOWN_WEIGHTS:
        console.print(f"and {len(loaded.fresh) - _SHOWN_WEIGHTS} more")


def show(scores: Scores, console: Console) -> None:
    """Prints the headline, the classes, the confusion matrix if it is small enough, and the most frequent mistakes."""
    console.print(headline(scores), soft_wrap=True, markup=False)
    console.print()
    show_classes(scores, console)
    if len(scores.occurring) <= _SHOWN_CLASSES:
        console.print()
        console.print(_confusion(scores))
    pairs = [f"{true!r} as {answer!r} ({count})" for true, answer, count in scores.confused(_SHOWN_MISTAKES)]
    if pairs:
        console.print(f"\nmost frequent confusions: {', '.join(pairs)}", soft_wrap=True, markup=False)


def show_classes(scores: Scores, console: Console) -> None:
    """Prints a line for each class, or for the hardest."""
    console.print(_classes(scores))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _classes(scores: Scores) -> Table:
    classes = [scores.classes[index] for index in scores.occurring]
    title = None
    if len(classes) > _SHOWN_CLASSES:
        title = f"the {_SHOWN_CLASSES} hardest of {len(classes)} classes"
        classes = sorted(classes, key=lambda score: 2.0 if score.recall is None else score.recall)[:_SHOWN_CLASSES]
    table = Table("class", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for head in ("images", "precision", "recall", "95 % interval", "F1"):
        table.add_column(head, justify="right")
    for score in classes:
        table.add_row(Text(score.label), f"{score.items:,}", *_shares(score))
    return table


def _shares(score: ClassScore) -> list[str]:
    precision, recall, f1 = map(percent_or_dash, (score.precision, score.recall, score.f1))
    return [precision, recall, interval_or_dash(score.recall_interval), f1]


def _confusion(scores: Scores) -> Table:
    """The columns have the model's numbers of the classes as heads, as names would be too wide."""
    table = Table("true \\ predicted", box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for index in scores.occurring:
        table.add_column(str(index), justify="right", no_wrap=True)
    for position, (index, row) in enumerate(zip(scores.occurring, scores.confusion, strict=True)):
        label = scores.labels[index]
        cells = [Text(str(count) if count else "·", style="bold" if at == position else "") for at, count in enumerate(row)]
        table.add_row(Text(label if label == str(index) else f"{index} {label}"), *cells)
    return table
