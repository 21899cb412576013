"""Generates service/pb/ from protos/, or with --check says whether it is fresh (exit code 1 if not)."""

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))


def generate(output: Path) -> None:
    # Mapping protos/ onto service/pb makes protoc write imports that are right for where the files lie.
    for proto in PROTOS:
        name = Path("service/pb") / proto.relative_to(ROOT / "protos")
        arguments = ["", f"-Iservice/pb={ROOT / 'protos'}", f"--python_out={output}", f"--pyi_out={output}", str(name)]
        if protoc.main(arguments) != 0:
            sys.exit(f"protoc failed on {proto}")


def main() -> None:
    if "--check" not in sys.argv:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()}
        stale = [
            str(name) for name in fresh if not (ROOT / name).exists() or not filecmp.cmp(Path(folder) / name, ROOT / name, False)
        ]
        there = {path.relative_to(ROOT) for path in (ROOT / "service/pb").rglob("*_pb2.py*")}
        stale += [f"{name} (no .proto of its own)" for name in there if name.suffix != ".pyc" and name not in fresh]
    if stale:
        sys.exit(f"stale, run `make protos`: {', '.join(sorted(stale))}")
    print(f"{len(fresh)} generated files are fresh")


main()
