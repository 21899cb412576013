"""The model card: a version's data, training, accuracy and limits, as Markdown beside its model file.

After Mitchell et al., "Model Cards for Model Reporting", arXiv:1810.03993. States only what was measured or is in the contract.
"""

from export.convert.precision_cost import PrecisionComparison
from export.convert.quantization import Quantization
from export.data.sample_size import ENOUGH_TO_CHOOSE, MARGIN, enough_to_choose, items_to_know
from export.evaluation.calibration import BINS
from export.evaluation.figures import CONFUSION, MISTAKES, RELIABILITY
from export.evaluation.gates import Comparison
from export.evaluation.scores import ClassScore, Scores
from export.text import escape_markdown, first_of, interval_or_dash, markdown_table, percent_or_dash
from export.training.history import CURVES
from service.model.contract import Contract, Training
from service.model.input_spec import InputSpec

CARD = "README.md"

_FEW_ITEMS = 30
_SHOWN_LABELS = 20
_SHOWN_FEW = 10
_SHOWN_MISTAKES = 5
_PART_USE = {
    "training": "the weights",
    "validation": "choosing the epoch, and the temperature",
    "test": "every figure on this page",
}
_PART_USE_INT8 = {
    "training": "the weights, and the ranges of int8",
    "validation": "choosing the epoch, the temperature, and the layers that stay in float",
}
_USE = """```
convoy serve MODELS            # the folder that holds {name}/<version>/model.onnx
convoy classify picture.png --model {name}
convoy inspect model.onnx      # layers and contract
```"""


def model_card(
    contract: Contract,
    comparison: Comparison,
    settings: dict[str, object],
    parts: dict[str, int],
    pictures: list[str],
    digest: str,
    size_bytes: int,
    parity: Comparison,
    cost: PrecisionComparison | None = None,
) -> str:
    """The text of the card.

    Args:
        contract: of the model file.
        comparison: of the model file with what it was made from, on the test part.
        settings: of the training, by name.
        parts: number of pictures in training, validation and test.
        pictures: names of the picture files beside the card.
        digest: SHA-256 of the model file in hexadecimal.
        size_bytes: size of the model file.
        parity: comparison of the fp32 file with PyTorch; the same as `comparison` for fp32.
        cost: of a precision below fp32.
    """
    training, scores = _training(contract), comparison.scores
    used_for = _PART_USE | (_PART_USE_INT8 if contract.precision == "int8" else {})
    if not enough_to_choose(parts["validation"]):
        layers = "the layers that stay in float" if contract.precision == "int8" else "nothing"
        used_for["validation"] = f"{layers}: too few to choose the epoch, which is the last, or a temperature"
    sections = {
        "": _overview(contract, scores, digest, size_bytes),
        "Use": _USE.format(name=contract.name),
        "Data": f"{escape_markdown(training.data)}, split with seed {training.seed}.\n\n"
        + markdown_table(
            ("part", "pictures", "for"), [(name, f"{items:,}", used_for[name]) for name, items in parts.items()], "lrl"
        ),
        "Training": markdown_table(("setting", "value"), [(name, str(value)) for name, value in settings.items()], "lr")
        + f"\n\nThe weights are those of epoch {training.epochs}."
        + _picture(CURVES, "Loss and accuracy by epoch", pictures),
        **({"Precision": _precision(cost, comparison)} if cost else {}),
        "Accuracy": _measured(comparison, parity)
        + _picture(CONFUSION, "Confusion matrix", pictures)
        + _picture(MISTAKES, "The most confident mistakes", pictures),
        "Calibration": _calibration(scores, parts["validation"]) + _picture(RELIABILITY, "Reliability diagram", pictures),
        "Limits": _limits(scores, training.data),
        "Provenance": _provenance(contract, digest),
    }
    title = f"# {escape_markdown(contract.name)}"
    return "\n\n".join([title, *(f"## {head}\n\n{body}" if head else body for head, body in sections.items())]) + "\n"


def _overview(contract: Contract, scores: Scores, digest: str, size_bytes: int) -> str:
    training = _training(contract)
    rows = [
        ("input", _input(contract.input)),
        ("labels", first_of(contract.labels, _SHOWN_LABELS)),
        ("network", f"{training.network}, {contract.head} head, {contract.precision}, {size_bytes:,} bytes"),
        *([("balanced accuracy", f"{scores.balanced_accuracy:.2%}, the mean over the classes")] if scores.imbalanced else []),
        ("accuracy", _accuracy(scores)),
        ("calibration error", f"{scores.reliability.error:.2%}"),
        ("digest", f"sha256 {digest}"),
    ]
    return (
        f"A classifier of pictures with {len(contract.labels)} classes: `model.onnx`, written by Convoy. The file holds everything "
        f"that is needed to serve it.\n\n{_never_right(scores)}{markdown_table(('', ''), rows, 'll')}"
    )


def _never_right(scores: Scores) -> str:
    """What the accuracy hides, before everything else."""
    if not scores.never_right:
        return ""
    found = [f"{escape_markdown(score.label)} ({score.right:,} of {score.items:,} right)" for score in scores.never_right]
    return f"**Of these classes the model is (nearly) never right: {first_of(found, _SHOWN_FEW)}.**\n\n"


def _input(spec: InputSpec) -> str:
    colours = "gray" if spec.channels == 1 else "colour"
    return f"{spec.width} x {spec.height} pixels, {colours}; other pictures are converted to {colours}, and {spec.fitting}"


def _accuracy(scores: Scores) -> str:
    low, high = scores.accuracy_interval
    return f"{scores.accuracy:.2%} ({scores.correct:,} of {scores.items:,} test pictures; 95 % interval {low:.1%} to {high:.1%})"


def _precision(cost: PrecisionComparison, comparison: Comparison) -> str:
    fp32, lower = cost.fp32, cost.lower
    rows = [
        (name, f"{figures.accuracy:.2%}", f"{figures.size_bytes:,}", f"{figures.images_per_second:,.0f}")
        for name, figures in (("fp32", fp32), (cost.precision, lower))
    ]
    about = (
        f"Made from an fp32 file. On the test part it lost {100 * (fp32.accuracy - lower.accuracy):.2f} points of accuracy against "
        f"that file, and {comparison.same_top1:.2%} of the labels are the same. Images a second were measured with ONNX Runtime on "
        f"the CPU of the export, in batches of {cost.batch_items}, both files by turns."
    )
    table = markdown_table(("", "accuracy", "bytes", "images/s"), rows, "lrrr")
    return "\n\n".join([about, table, *([_quantization(cost.quantization)] if cost.quantization else [])])


def _quantization(found: Quantization) -> str:
    methods = ", ".join(f"{name} {divergence:.2g}" for name, divergence in found.methods.items())
    rows = [
        (row.layer, row.operator, f"{row.divergence:.1e}", f"{row.changed:.1%}", "int8" if row.quantized else "float")
        for row in found.layers
    ]
    return (
        "Weights are int8, using 7 bits, with a scale for each output channel; activations are uint8, with ranges from "
        f"{found.calibration_items:,} training pictures, chosen by their {found.method} (mean divergence of the answers from "
        f"fp32 with all layers in int8, in nats: {methods}). Normalisation, temperature and softmax are in float.\n\n"
        f"The table shows each layer alone in int8, on {found.sensitivity_items:,} validation pictures, and what it computes in. "
        f"With this choice {found.accuracy:.2%} of the validation part are right, in fp32 {found.reference_accuracy:.2%}.\n\n"
        + markdown_table(("layer", "operator", "divergence", "labels changed", "computed in"), rows, "llrrl")
    )


def _measured(comparison: Comparison, parity: Comparison) -> str:
    scores = comparison.scores
    whose = "" if comparison is parity else "of the fp32 file "
    rows = [_class_row(score) for score in scores.classes]
    pairs = [
        f"{escape_markdown(true)} taken for {escape_markdown(answer)} ({count:,})"
        for true, answer, count in scores.confused(_SHOWN_MISTAKES)
    ]
    return (
        f"{_accuracy(scores)}, measured through the code that serves it, from the bytes of each file to the label. PyTorch reaches "
        f"{parity.reference_accuracy:.2%} with the same weights; no probability {whose}differs from "
        f"PyTorch's by more than {parity.max_difference:.1e}.\n\n"
        f"{markdown_table(('class', 'pictures', 'precision', 'recall', '95 % interval', 'F1'), rows, 'lrrrrr')}"
        + (f"\n\nMost frequent mistakes: {', '.join(pairs)}." if pairs else "")
    )


def _class_row(score: ClassScore) -> tuple[str, ...]:
    precision, recall, f1 = map(percent_or_dash, (score.precision, score.recall, score.f1))
    return score.label, f"{score.items:,}", precision, recall, interval_or_dash(score.recall_interval), f1


def _calibration(scores: Scores, validation_items: int) -> str:
    error = f"The expected calibration error is {scores.reliability.error:.2%}"
    if not enough_to_choose(validation_items):
        text = (
            f"{error}. No temperature is applied: {validation_items:,} validation pictures are too few to fit one "
            f"({ENOUGH_TO_CHOOSE} are enough), and the network's own logits are served"
        )
    elif scores.temperature == 1.0:
        text = f"{error}. No temperature is applied: the network's own logits are served"
    else:
        text = (
            f"{error}; without the temperature {scores.reliability_before.error:.2%}. The temperature, "
            f"{scores.temperature:.3f}, divides the logits inside the graph; it minimises the cross-entropy of the "
            f"{validation_items:,} validation pictures (Guo et al., arXiv:1706.04599)"
        )
    return (
        f"{text}. The mean cross-entropy on the test part is {scores.cross_entropy:.4f} nats. The error is computed over {BINS} "
        "bins of equal width by confidence; on few pictures it is overestimated."
    )


def _limits(scores: Scores, data: str) -> str:
    hardest = scores.hardest
    limits = [
        f"Every picture gets one of the {len(scores.labels)} labels, even one that shows none of them.",
        f"The figures hold for pictures like those of {escape_markdown(data)}; others were not measured.",
        f"The hardest class is {escape_markdown(hardest.label)}: {percent_or_dash(hardest.recall)} of its {hardest.items:,} "
        "test pictures are right.",
    ]
    low, high = scores.accuracy_interval
    if high - low > 2 * MARGIN:
        limits.append(
            f"{scores.items:,} test pictures say the accuracy only to within {100 * (high - low) / 2:.0f} points; about "
            f"{items_to_know(scores.correct, scores.items):,} would say it to within {100 * MARGIN:.0f}."
        )
    few = [escape_markdown(score.label) for score in scores.classes if score.items < _FEW_ITEMS]
    if few:
        limits.append(f"Fewer than {_FEW_ITEMS} test pictures, too few for reliable figures: {first_of(few, _SHOWN_FEW)}.")
    return "\n".join(f"- {limit}" for limit in limits)


def _training(contract: Contract) -> Training:
    if contract.training is None:
        raise ValueError("the card is that of a model that was trained here")
    return contract.training


def _provenance(contract: Contract, digest: str) -> str:
    training = _training(contract)
    return (
        markdown_table(("package", "version"), list(training.versions.items()), "ll")
        + f"\n\nCommit {training.commit or 'unknown'}. The file holds {len(contract.golden)} golden samples, pictures "
        "with their probabilities at export; a server replays them before it serves the model.\n\n"
        f"`sha256  {digest}  model.onnx`"
    )


def _picture(name: str, caption: str, pictures: list[str]) -> str:
    return f"\n\n![{caption}]({name})" if name in pictures else ""
