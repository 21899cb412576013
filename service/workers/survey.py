"""Measures, in a process of its own, what a worker would come to, and so chooses the number of workers for `--workers auto`.

The process is a worker of as many as there are CPUs that never listens: it tries and loads the models as any server does, with one
CPU, says how long they take and how much memory it has, and ends. If it fails or takes too long, there will be one worker.
"""

import contextlib
import json
import logging
import os
import resource
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from service.access.auth_file import parse_auth_file
from service.config import MAX_WORKERS, ServerConfig
from service.engine import message_limits
from service.errors import UserError
from service.lifecycle import StopEvent, check_config, trusted_keys
from service.model.cpus import cpu_budget
from service.model.repository_layout import model_names
from service.process.denormals import flush_denormals
from service.process.malloc import limit_freed_memory
from service.process.memory_limit import free_memory_bytes
from service.process.process_exit import exit_at_once
from service.workers.worker_count import Choice, MeasuredModel, Setting, Survey, choose, one_whatever_is_measured

log = logging.getLogger(__name__)

SURVEY_SECONDS = 30.0
"""Small models are measured within a second or two, on a busy machine some more. Beyond this the server starts without."""

_PROGRAM = "from service.workers.survey import main; main()"
_READ_BYTES = 2**16


class NotMeasuredError(Exception):
    """Nothing is known of the models; the text says why."""


def with_worker_count(config: ServerConfig, stop: StopEvent) -> ServerConfig:
    """The settings with a number in place of `auto`, which the log explains. Ends early when `stop` is set.

    Raises UserError as `check_config`.
    """
    one = config.model_copy(update={"workers": 1})
    check_config(one)
    choice = one_whatever_is_measured(_setting(config)) or _measured(one, stop)
    if not stop.is_set():
        log.info("--workers auto: %d worker%s: %s", choice.workers, "s" if choice.workers > 1 else "", choice.reason)
    return config.model_copy(update={"workers": choice.workers})


def _measured(config: ServerConfig, stop: StopEvent) -> Choice:
    free_bytes = free_memory_bytes()
    try:
        survey = _survey(config, stop)
    except NotMeasuredError as error:
        return Choice(1, f"the models could not be measured: {error}")
    largest = config.max_message_bytes or message_limits.max_message_bytes(config.repository, config.policies, trusted_keys(config))
    budget = message_limits.byte_budget(config, largest)
    return choose(survey, cpu_budget(), free_bytes, budget.limit_bytes // largest)


def _setting(config: ServerConfig) -> Setting:
    return Setting(
        cpus=cpu_budget(),
        shares_port=hasattr(socket, "SO_REUSEPORT"),
        has_grpc_socket=config.grpc_socket is not None,
        has_quotas=config.auth is not None and _has_quotas(config.auth),
        provider=config.provider,
        largest=max(((name, _largest_version_bytes(config.repository / name)) for name in _names(config.repository)),
                    key=lambda found: found[1], default=("", 0)),
    )  # fmt: skip


def _names(repository: Path) -> list[str]:
    try:
        return model_names(repository)
    except OSError:
        return []


def _largest_version_bytes(folder: Path) -> int:
    """The size of the files of a model's largest version."""
    sizes = [0]
    with contextlib.suppress(OSError):
        sizes += [
            sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
            for version in folder.iterdir()
            if version.name.isdigit()
        ]
    return max(sizes)


def _has_quotas(file: Path) -> bool:
    """Whether a group has some; a file that is not accepted is refused when the server starts."""
    try:
        groups = parse_auth_file(file, file.read_bytes()).groups
    except (OSError, UserError):
        return False
    return any(group.requests_per_second or group.bytes_per_second or group.queue_items for group in groups.values())


def _survey(config: ServerConfig, stop: StopEvent) -> Survey:
    """Raises NotMeasuredError."""
    deadline = time.monotonic() + SURVEY_SECONDS
    content = b""
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-c", _PROGRAM], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in a terminal is not for it
        )  # fmt: skip
    except OSError as error:
        raise NotMeasuredError(f"no process can be started: {error.strerror}") from None
    assert process.stdin is not None  # noqa: S101 - for mypy
    assert process.stdout is not None  # noqa: S101
    output = process.stdout.fileno()
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen below
            process.stdin.write(config.model_dump_json().encode())
            process.stdin.close()
        while not content.endswith(b"\n"):
            ready, _, _ = select.select([stop.fileno(), output], [], [], max(0.0, deadline - time.monotonic()))
            if stop.is_set():
                raise NotMeasuredError("the server is to stop")
            if not ready:
                raise NotMeasuredError(f"loading them takes longer than {SURVEY_SECONDS:g} s")
            if output in ready:
                read = os.read(output, _READ_BYTES)
                if not read:
                    raise NotMeasuredError("the process that loads them has ended early")
                content += read
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    models, process_bytes = json.loads(content)
    return Survey(tuple(MeasuredModel(*model) for model in models), process_bytes)


def main() -> None:
    """The process: reads the settings from its input, and writes what it measures as one line of JSON."""
    from service.engine.trial_server import fork_trial_server

    limit_freed_memory()
    flush_denormals()
    logging.disable()  # the server that follows says all that there is to say
    fork_trial_server()
    from service.server import Server

    config = ServerConfig.model_validate_json(sys.stdin.buffer.read())
    alone = {"workers": min(cpu_budget(), MAX_WORKERS), "ready_file": None, "http_socket": None, "otlp_endpoint": None}
    server = Server(config.model_copy(update=alone))
    server.load_models()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps((server.measured_models(), peak_bytes)), flush=True)  # noqa: T201 - its parent reads that
    exit_at_once(0)
