"""The model card: what a version is, how good it is and what it is not for, as Markdown beside its model file.

After Mitchell et al., "Model Cards for Model Reporting", arXiv:1810.03993. Says only what was measured or is in the contract.
"""

from collections.abc import Sequence

from export.convert.precision import Cost
from export.convert.quantization import Quantization
from export.evaluation.calibration import BINS
from export.evaluation.figures import CONFUSION, MISTAKES, RELIABILITY
from export.evaluation.scores import Report, Scores
from export.training.loop import CURVES
from service.model.contract import Contract, InputSpec

CARD = "README.md"

_FEW_ITEMS = 30
_FITS = {
    "stretch": "stretched to that size",
    "crop": "scaled and cropped to that size",
    "pad": "scaled and padded to that size",
}
_FOR = {
    "training": "the weights",
    "validation": "choosing the epoch, and the temperature",
    "test": "every figure on this page",
}
_FOR_INT8 = {
    "training": "the weights, and the ranges of int8",
    "validation": "choosing the epoch, the temperature, and what stays in float",
}
_USE = """```
convoy serve MODELS            # the folder that holds {name}/<version>/model.onnx
convoy classify picture.png --model {name}
convoy inspect model.onnx      # layers and contract
```"""


def model_card(
    contract: Contract, report: Report, settings: dict[str, object], parts: dict[str, int], pictures: list[str], digest: str,
    size_bytes: int, parity: Report, cost: Cost | None = None,
) -> str:  # fmt: skip
    """The card's text.

    Args:
        contract: what the file says of itself.
        report: what was measured on the test part.
        settings: how it was trained, by name.
        parts: how many pictures there are in training, validation and test.
        pictures: names of the pictures that lie beside the card.
        digest: sha256 of the model file, in hexadecimal.
        size_bytes: size of the model file.
        parity: what was measured of the fp32 file beside PyTorch; `report` itself if that is the model file.
        cost: what a precision below fp32 costs.
    """
    training, scores = contract.training, report.scores
    used_for = _FOR | (_FOR_INT8 if contract.precision == "int8" else {})
    sections = {
        "": _overview(contract, scores, digest, size_bytes),
        "Use": _USE.format(name=contract.name),
        "Data": f"{_text(training.data)}, split with seed {training.seed}.\n\n"
        + _table(("part", "pictures", "for"), [(name, f"{items:,}", used_for[name]) for name, items in parts.items()], "lrl"),
        "Training": _table(("setting", "value"), [(name, str(value)) for name, value in settings.items()], "lr")
        + f"\n\nKept are the weights of epoch {training.epochs}."
        + _picture(CURVES, "Loss and accuracy by epoch", pictures),
        **({"Precision": _precision(cost, report)} if cost else {}),
        "Accuracy": _measured(report, parity)
        + _picture(CONFUSION, "Confusion matrix", pictures)
        + _picture(MISTAKES, "The most confident mistakes", pictures),
        "Calibration": _calibration(scores, parts["validation"]) + _picture(RELIABILITY, "Reliability diagram", pictures),
        "Limits": _limits(scores, training.data),
        "Provenance": _provenance(contract, digest),
    }
    title = f"# {_text(contract.name)}"
    return "\n\n".join([title, *(f"## {head}\n\n{body}" if head else body for head, body in sections.items())]) + "\n"


def _overview(contract: Contract, scores: Scores, digest: str, size_bytes: int) -> str:
    training = contract.training
    labels = ", ".join(contract.labels[:20])
    if len(contract.labels) > 20:
        labels += f" and {len(contract.labels) - 20} more"
    rows = [
        ("input", _input(contract.input)),
        ("labels", labels),
        ("network", f"{training.network}, {contract.head} head, {contract.precision}, {size_bytes:,} bytes"),
        ("accuracy", _accuracy(scores)),
        ("calibration error", f"{scores.reliability.error:.2%}"),
        ("digest", f"sha256 {digest}"),
    ]
    return (
        f"A classifier of pictures into {len(contract.labels)} classes: `model.onnx`, written by Convoy. The file holds all that "
        f"is needed to serve it.\n\n{_table(('', ''), rows, 'll')}"
    )


def _input(spec: InputSpec) -> str:
    colours = "gray" if spec.channels == 1 else "colour"
    return f"{spec.width} x {spec.height} pixels, {colours}; any other picture is made {colours} and {_FITS[spec.fit]}"


def _accuracy(scores: Scores) -> str:
    low, high = scores.accuracy_interval
    return f"{scores.accuracy:.2%} ({scores.correct:,} of {scores.items:,} test pictures; 95 % interval {low:.1%} to {high:.1%})"


def _precision(cost: Cost, report: Report) -> str:
    fp32, lower = cost.fp32, cost.lower
    rows = [
        (name, f"{figures.accuracy:.2%}", f"{figures.size_bytes:,}", f"{figures.images_per_second:,.0f}")
        for name, figures in (("fp32", fp32), (cost.precision, lower))
    ]
    about = (
        f"Made from an fp32 file, against which it lost {100 * (fp32.accuracy - lower.accuracy):.2f} points of accuracy on the "
        f"test part; {report.same_top1:.2%} of the labels are the same. Images a second are ONNX Runtime's on the CPU of the "
        f"export, in batches of {cost.batch_items}, both files in turns."
    )
    table = _table(("", "accuracy", "bytes", "images/s"), rows, "lrrr")
    return "\n\n".join([about, table, *([_quantization(cost.quantization)] if cost.quantization else [])])


def _quantization(found: Quantization) -> str:
    methods = ", ".join(f"{name} {divergence:.2g}" for name, divergence in found.methods.items())
    rows = [
        (row.layer, row.operator, f"{row.divergence:.1e}", f"{row.changed:.1%}", "int8" if row.quantized else "float")
        for row in found.layers
    ]
    return (
        "Weights are int8, of which they use 7 bits, with a scale for each output channel; activations are uint8, with ranges from "
        f"{found.calibration_items:,} training pictures, chosen by their {found.method} (mean divergence of the answers from "
        f"fp32 with all layers in int8, in nats: {methods}). Normalisation, temperature and softmax are in float.\n\n"
        f"Each layer alone in int8, on {found.sensitivity_items:,} validation pictures, and what was decided. So "
        f"{found.accuracy:.2%} of the validation part are right, in fp32 {found.reference_accuracy:.2%}.\n\n"
        + _table(("layer", "operator", "divergence", "labels changed", "computed in"), rows, "llrrl")
    )


def _measured(report: Report, parity: Report) -> str:
    scores = report.scores
    rows = [
        (score.label, f"{score.items:,}", *(_share(value) for value in (score.precision, score.recall, score.f1)))
        for score in scores.classes
    ]
    pairs = [f"{_text(true)} for {_text(answer)} ({count:,})" for true, answer, count in scores.confused(5)]
    return (
        f"{_accuracy(scores)}, measured through the code that serves it, from the bytes of each file to the label. PyTorch reaches "
        f"{parity.reference_accuracy:.2%} with the same weights; no probability {'' if report is parity else 'of the fp32 file '}"
        f"differs from PyTorch's by more than {parity.max_difference:.1e}.\n\n"
        f"{_table(('class', 'pictures', 'precision', 'recall', 'F1'), rows, 'lrrrr')}"
        + (f"\n\nTaken most often for another: {', '.join(pairs)}." if pairs else "")
    )


def _calibration(scores: Scores, validation_items: int) -> str:
    error = f"The expected calibration error is {scores.reliability.error:.2%}"
    if scores.temperature == 1.0:
        text = f"{error}. No temperature is applied: the network's own logits are served"
    else:
        text = (
            f"{error}; without the temperature it would be {scores.reliability_before.error:.2%}. The temperature, "
            f"{scores.temperature:.3f}, divides the logits inside the graph; it minimises the cross-entropy of the "
            f"{validation_items:,} validation pictures (Guo et al., arXiv:1706.04599)"
        )
    return (
        f"{text}. The mean cross-entropy on the test part is {scores.cross_entropy:.4f} nats. The error is taken over {BINS} bins "
        "of equal width, of the probability of the answer; the fewer the pictures, the more of it is chance."
    )


def _limits(scores: Scores, data: str) -> str:
    hardest = scores.hardest
    limits = [
        f"It gives one of its {len(scores.labels)} labels to every picture, also to one that shows none of them.",
        f"The figures hold for pictures like those of {_text(data)}; how it fares with others was not measured.",
        f"The hardest class is {_text(hardest.label)}: {_share(hardest.recall)} of its {hardest.items:,} test pictures are right.",
    ]
    few = [_text(score.label) for score in scores.classes if score.items < _FEW_ITEMS]
    if few:
        shown = ", ".join(few[:10]) + (f" and {len(few) - 10} more" if len(few) > 10 else "")
        limits.append(f"Fewer than {_FEW_ITEMS} test pictures, too few to say much of the class: {shown}.")
    return "\n".join(f"- {limit}" for limit in limits)


def _provenance(contract: Contract, digest: str) -> str:
    return (
        _table(("package", "version"), list(contract.training.versions.items()), "ll")
        + f"\n\nCommit {contract.training.commit or 'unknown'}. The file holds {len(contract.golden)} golden samples, pictures "
        "with their answers at export; a server replays them before it serves the model.\n\n"
        f"`sha256  {digest}  model.onnx`"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _picture(name: str, caption: str, pictures: list[str]) -> str:
    return f"\n\n![{caption}]({name})" if name in pictures else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], align: str) -> str:
    """A table in Markdown; `align` has a letter a column, l or r."""
    rules = ["---:" if side == "r" else "---" for side in align]
    lines = [head, rules, *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Text that Markdown shows as it is: names of classes come from folders, and those can be called anything."""
    for special in "\\`*_{}[]<>#|":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
