"""`convoy export`: what it prints, and the options that it refuses."""

import re
from pathlib import Path

from click.testing import CliRunner

from export.cli import export as command


def test_export_prints_the_table_and_takes_a_limit(run: Path, tmp_path: Path) -> None:
    def export(*more: str) -> str:
        arguments = [str(run), "--repository", str(tmp_path / "models"), "--precision", "int8", *more]
        return CliRunner().invoke(command.export, arguments, catch_exceptions=False, standalone_mode=False).stdout

    shown = export("--max-accuracy-loss", "1")
    assert re.search(r"^conv1 +Conv +[\d.]+e-\d+ +[\d.]+% +int8", shown, re.MULTILINE)
    assert re.search(r"^int8 +[\d.]+% +[\d,]+ +[\d,]+", shown, re.MULTILINE)
    for value, message in (("nan", "not a finite number"), ("-1", "0<=x<=100"), ("half", "not a valid float")):
        refused = CliRunner().invoke(
            command.export, [str(run), "--repository", str(tmp_path / "none"), "--max-accuracy-loss", value]
        )
        assert refused.exit_code == 2
        assert message in refused.output
    refused = CliRunner().invoke(command.export, [str(run), "--repository", str(tmp_path / "none"), "--precision", "int4"])
    assert refused.exit_code == 2
    assert "'fp32', 'int8', 'fp16'" in refused.output
    assert not (tmp_path / "none").exists()
