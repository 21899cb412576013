"""The model card of an imported model: what it is, what was decided, what was shown, and what was not."""

from collections.abc import Sequence

from export.evaluation.scores import Scores
from export.importing.gates import Gate
from export.text import escape_markdown, first_of, markdown_table, percent_or_dash
from service.model.contract import Contract
from service.model.inference import Model

CARD = "README.md"

_SHOWN_LABELS = 20
_SHOWN_CLASSES = 30
_SHOWN_MISTAKES = 5
_MEANING = {
    "softmax": "one label is true",
    "sigmoid": "one of two labels is true; the network's one number is for the second",
    "multilabel": "each label is true or not, by itself",
}


def import_card(
    served: Model, decisions: Sequence[str], passed: Sequence[Gate], scores: Scores | None, answers: str, commit: str | None
) -> str:  # fmt: skip
    """The text of the card.

    Args:
        served: the loaded model file.
        decisions: a line for each thing that was decided.
        passed: the gates.
        scores: on the user's labelled pictures; None without them.
        answers: whose the answers of the golden samples are.
        commit: of Convoy's source.
    """
    contract = served.contract
    sections = {
        "": _overview(served),
        "Use": f"```\nconvoy serve MODELS            # the folder that holds {contract.name}/<version>/model.onnx\n"
        f"convoy classify picture.png --model {contract.name}\nconvoy inspect model.onnx      # layers and contract\n```",
        "What was decided": "\n".join(f"- {escape_markdown(line)}" for line in decisions),
        "What was shown": markdown_table(("gate", "", "seen"), [_row(gate) for gate in passed], "lll"),
        **({"Accuracy": _accuracy(scores)} if scores is not None else {}),
        "Limits": _limits(contract, passed, scores),
        "Provenance": _provenance(served, answers, commit),
    }
    title = f"# {escape_markdown(contract.name)}"
    return "\n\n".join([title, *(f"## {head}\n\n{body}" if head else body for head, body in sections.items())]) + "\n"


def _overview(served: Model) -> str:
    contract, origin = served.contract, served.contract.origin
    assert origin is not None  # noqa: S101 - an imported model's
    spec = contract.input
    rows = [
        ("source", f"{origin.source}, sha256 {origin.digest}"),
        ("written by", origin.framework or "unknown"),
        (
            "input",
            f"{spec.width} x {spec.height} pixels, {'gray' if spec.channels == 1 else 'colour'}: {spec.resize}, {spec.filter}",
        ),
        *(
            (f"labels of {head.name}", f"{len(head.labels)}: {first_of(head.labels, _SHOWN_LABELS)} ({_MEANING[head.activation]})")
            for head in contract.heads
        ),
        ("precision", contract.precision),
        ("batches", f"exactly {contract.batch_items}" if contract.batch_items else "of any size"),
        ("digest", f"sha256 {served.digest}"),
    ]
    return (
        "A classifier of pictures that was trained elsewhere: `model.onnx`, wrapped by `convoy import`. The file holds everything "
        f"that is needed to serve it.\n\n{markdown_table(('', ''), rows, 'll')}"
    )


def _row(gate: Gate) -> tuple[str, str, str]:
    return gate.name, "passed" if gate.proved else "not proved", gate.seen


def _accuracy(scores: Scores) -> str:
    low, high = scores.accuracy_interval
    balanced = f"The balanced accuracy, the mean over the classes, is {scores.balanced_accuracy:.2%}. " if scores.imbalanced else ""
    classes = sorted((score for score in scores.classes if score.items), key=lambda score: score.recall or 0.0)
    rows = [
        (score.label, f"{score.items:,}", *(percent_or_dash(value) for value in (score.precision, score.recall, score.f1)))
        for score in classes[:_SHOWN_CLASSES]
    ]
    pairs = [
        f"{escape_markdown(true)} taken for {escape_markdown(answer)} ({count:,})"
        for true, answer, count in scores.confused(_SHOWN_MISTAKES)
    ]
    return (
        f"{balanced}{scores.accuracy:.2%} of {scores.items:,} pictures are right (95 % interval {low:.1%} to {high:.1%}), measured "
        f"through the code that serves it, from the bytes of each file to the label. The expected calibration error is "
        f"{scores.reliability.error:.2%}.\n\n"
        + markdown_table(("class", "pictures", "precision", "recall", "F1"), rows, "lrrrr")
        + (f"\n\nThe {_SHOWN_CLASSES} hardest of {len(classes)} classes are shown." if len(classes) > _SHOWN_CLASSES else "")
        + (f"\n\nMost frequent mistakes: {', '.join(pairs)}." if pairs else "")
    )


def _limits(contract: Contract, passed: Sequence[Gate], scores: Scores | None) -> str:
    limits = [f"**{gate.name}**: {escape_markdown(gate.seen)}." for gate in passed if not gate.proved]
    if scores is None:
        limits.append("**accuracy**: not measured: no labelled pictures were given (`--data`).")
    if contract.head == "softmax":
        limits.append(f"Every picture gets one of the {len(contract.labels)} labels, even one that shows none of them.")
    limits.append("What the network was trained on, and for whom it works, is not known to Convoy: ask its authors.")
    return "\n".join(f"- {limit}" for limit in limits)


def _provenance(served: Model, answers: str, commit: str | None) -> str:
    contract, origin = served.contract, served.contract.origin
    assert origin is not None  # noqa: S101 - an imported model's
    command = f"```\n{origin.command}\n```\n\n" if origin.command else ""
    return (
        f"{command}{markdown_table(('package', 'version'), list(origin.versions.items()), 'll')}\n\n"
        f"Commit {commit or 'unknown'}. The file holds {len(contract.golden)} golden samples, pictures with the pixels that they "
        f"become and {answers}; a server replays them before it serves the model."
    )
