"""Fuzzes the targets in turn, each in a process of its own, and says how many inputs were tried. Exit code 1 if one was wrong.

What libFuzzer finds wrong is printed and kept in the folder of its corpus, from which the next run goes on.

Usage: python -m tests.fuzz [--seconds 60] [--only TARGET ...] [--corpus FOLDER] [--model MODEL.onnx]
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service"]):
    from service.config import ServerConfig
    from service.server import Server
    from tests.fuzz import targets

from rich.console import Console

from tests.benchmarks.transport import make_repository

NAMES = ("classify", "classify-stream", "infer", "infer-stream", "rest-json", "rest-binary", "rest-gzip", "http", *targets.READERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--corpus", type=Path, help="folder of the inputs that were found to matter; forgotten if not given")
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.target is not None:
        _fuzz(arguments.target, arguments.folder, arguments.corpus, arguments.seconds)
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        make_repository(Path(folder), arguments.model)
        corpus = arguments.corpus or Path(folder) / "corpus"
        failed = [name for name in arguments.only if not _run(name, Path(folder), corpus / name, arguments.seconds, console)]
    sys.exit(bool(failed))


def _run(name: str, folder: Path, corpus: Path, seconds: int, console: Console) -> bool:
    """Fuzzes one target; whether nothing was wrong."""
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--folder", str(folder), "--corpus", str(corpus),
               "--seconds", str(seconds)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10 * seconds + 300, check=False)
    tried = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr) or re.findall(r"Done (\d+) runs", done.stderr)
    console.print(f"{name}: {int(tried[-1]) if tried else 0:,} inputs, {'nothing' if done.returncode == 0 else 'SOMETHING'} wrong")
    if done.returncode:
        console.print(done.stdout[-2000:] + done.stderr[-6000:])
    return done.returncode == 0


def _fuzz(name: str, folder: Path, corpus: Path, seconds: int) -> None:
    model = (folder / "models" / "digits" / "1" / "model.onnx").read_bytes()
    for seed in targets.seeds(model)[name]:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    target = targets.READERS.get(name)
    if target is None:
        server = Server(ServerConfig(repository=folder / "models", grpc_port=0, http_port=0, log_level="error"))
        server.start()
        target = targets.Surfaces(server.grpc_port, server.http_port).targets[name]
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-print_final_stats=1", "-rss_limit_mb=4096", "-max_len=8192",
         f"-artifact_prefix={corpus}/wrong-"],
        target,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
