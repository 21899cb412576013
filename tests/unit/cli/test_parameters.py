"""The types of parameters that all commands share."""

import click
import pytest
from click.testing import CliRunner

from service.cli.parameters import FiniteFloat, ImageSize

SIZE = ImageSize(4_096)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("224", (224, 224)), ("224x160", (224, 160)), ("48X64", (48, 64)), ("1", (1, 1)), ("4096", (4096,) * 2)],
)
def test_an_image_size_is_n_or_hxw(given: str, expected: tuple[int, int]) -> None:
    assert SIZE.convert(given, None, None) == expected


@pytest.mark.parametrize("given", ["", "0", "0x5", "x", "28x", "x28", "1x2x3", "-1", "2.5", "1e3", "70000", "1x70000", "²"])
def test_anything_else_is_refused(given: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is neither N nor HxW, of 1 to \d+ pixels, such as"):
        SIZE.convert(given, None, None)


def test_a_number_is_finite_and_in_its_range() -> None:
    option = click.Option(["--number"], type=FiniteFloat(0, 100))
    command = click.Command("command", params=[option], callback=lambda number: click.echo(repr(number)))

    def run(given: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, ["--number", given])
        return result.exit_code, result.output

    assert run("2.5") == (0, "2.5\n")
    assert run("nan")[0] == 2
    assert "nan is not a finite number." in run("nan")[1]
    assert "101.0 is not in the range" in run("101")[1]
    assert run("inf")[0] == 2
