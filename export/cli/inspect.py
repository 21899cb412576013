"""`convoy inspect`: the layers, the contract and the digest of an ONNX file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from export.inspection.model_file import Inspection
    from service.model.contract import Contract

_SHOWN_LABELS = 20

console = Console(highlight=False)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
def inspect(model: Path) -> None:
    """Show the layers, the contract and the digest of an ONNX file, exported by Convoy or not."""
    from export.inspection import model_file

    found = model_file.inspect(model)
    console.print(_layer_table(found))
    console.print(f"\n{_totals(found)}", soft_wrap=True)
    if found.external:
        console.print(f"weights are outside the file, in {', '.join(found.external)}", soft_wrap=True, markup=False)
    if found.contract is None:
        console.print("no contract: this file was not written by Convoy")
        if found.decodes:
            console.print("input       the bytes of a picture file, which the graph decodes")
        for output in found.outputs:
            console.print(f"{'output':<11} {output.kind} {output.name}: {output.numbers}", soft_wrap=True, markup=False)
        return
    for name, value in _facts(found.contract).items():
        console.print(f"{name:<11} {value}", soft_wrap=True, markup=False)


def _layer_table(found: "Inspection") -> Table:
    table = Table("Layer (type)", "Output Shape", "Param #", "MACs", "Precision", box=None, header_style="bold", pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for layer in found.layers:
        shape = "?" if layer.shape is None else f"({', '.join(map(str, layer.shape))})"
        macs = "?" if layer.macs is None else f"{layer.macs:,}"
        name = escape(f"{layer.name} ({layer.operator})")
        table.add_row(name, escape(shape), f"{layer.parameters:,}", macs, layer.precision or "?")
    return table


def _totals(found: "Inspection") -> str:
    uncounted = sum(layer.macs is None for layer in found.layers)
    return (
        f"{_trained(found)}"
        f"Total params: {found.parameters:,}\nTrainable params: {found.parameters - found.statistics:,}\n"
        f"Non-trainable params: {found.statistics:,}\n"
        f"MACs an image: {found.macs:,}{f', without {uncounted} layers of unknown shape' if uncounted else ''}\n"
        f"{found.size_bytes:,} bytes, {f'sha256 {found.digest}' if found.digest else f'no sha256: {found.problem}'}"
    )


def _trained(found: "Inspection") -> str:
    """The parameters of the network that was trained, with why the file has others; empty if the file does not say."""
    from export.inspection.folded_norms import why

    trained = found.contract.training.parameters if found.contract and found.contract.training else None
    if trained is None:
        return ""
    reason = why(trained, found.parameters - found.statistics, sum(layer.folds_norm for layer in found.layers))
    return f"Params of the trained network: {trained:,}{f' ({reason})' if reason else ''}\n"


def _facts(contract: "Contract") -> dict[str, str]:
    measured = contract.measured
    calibration = "not measured" if measured.calibration_error is None else f"expected error {measured.calibration_error:.2%}"
    calibration += "" if contract.temperature == 1.0 else f", with a temperature of {contract.temperature:.3f}"
    accuracy = "not measured" if measured.accuracy is None else f"{measured.accuracy:.2%}"
    if measured.accuracy_interval is not None:
        accuracy += " (95 % interval {:.1%} to {:.1%})".format(*measured.accuracy_interval)
    more = ", ..." if len(contract.labels) > _SHOWN_LABELS else ""
    return {
        "name": contract.name,
        "input": f"{contract.input.dtype} {' x '.join(map(str, contract.input.shape))}, {contract.input.fitting}",
        "labels": f"{len(contract.labels)}: {', '.join(contract.labels[:_SHOWN_LABELS])}{more}",
        "head": contract.head,
        **{
            f"head {head.name}": f"{len(head.labels)} labels, {head.activation}, output {head.output}"
            for head in contract.heads[1:]
        },
        "precision": contract.precision,
        **_came_from(contract),
        "accuracy": accuracy,
        "calibration": calibration,
        "golden": f"{len(contract.golden)} samples",
        "versions": ", ".join(f"{package} {version}" for package, version in measured.versions.items()),
    }


def _came_from(contract: "Contract") -> dict[str, str]:
    if training := contract.training:
        trained = f"{training.network} on {training.data}, kept epoch {training.epochs}, seed {training.seed}"
        return {"trained": trained, "commit": training.commit or "unknown"}
    origin = contract.origin
    if origin is None:
        return {}
    found = {
        "imported from": f"{origin.source}, sha256 {origin.digest}",
        "written by": origin.framework,
        "command": origin.command,
        "pixels": origin.pixels or "not proved to be those of the training",
        "measured on": origin.data,
    }
    return {name: value for name, value in found.items() if value}
