"""`convoy serve`."""

from typing import Any

import click

from service.access import audit
from service.cli.config_options import NO_CONTROL, ServeCommand, parameters
from service.config import ServerConfig
from service.lifecycle import StopOnSignals, raise_file_limit
from service.process.denormals import flush_denormals
from service.process.logs import set_up_logging
from service.process.malloc import limit_freed_memory


@click.command(cls=ServeCommand, params=[*parameters(ServerConfig), NO_CONTROL])
def serve(**settings: Any) -> None:
    """Serve every model in the folder REPOSITORY (REPOSITORY/<model>/<version>/model.onnx).

    New versions are loaded while serving. SIGTERM or Ctrl-C finishes the accepted requests and exits with code 0; a second one
    exits at once. Each option can also be set as the environment variable CONVOY_<OPTION>; options win.
    """
    config = ServerConfig(**settings)
    set_up_logging(config.log_level, config.log_format)
    audit.open_log(config.audit_log)
    limit_freed_memory()
    flush_denormals()
    raise_file_limit()
    stop = None
    if config.workers == "auto":
        from service.workers.survey import with_worker_count

        stop = StopOnSignals(config.lame_duck_seconds)
        config = with_worker_count(config, stop)
    if config.repository.is_dir():
        _start_trial_server(config.worker_count)
    if config.worker_count > 1:
        from service.workers.supervisor import serve as run
    else:
        from service.server import serve as run
    run(config, stop or StopOnSignals(config.lame_duck_seconds))


def _start_trial_server(workers: int) -> None:
    """Now, while this process has one thread and can be forked; a supervisor, which imports less, starts it beside its workers."""
    if workers > 1:
        from service.engine.trial_client import start_trial_server

        start_trial_server()
    else:
        from service.engine.trial_server import fork_trial_server

        fork_trial_server()
