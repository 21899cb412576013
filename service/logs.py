"""How what is logged looks: a line for people, or JSON for programs. All modules log with the standard library's `logging`.

Neither form ever has more of a traceback than its lines: no values of variables, which may hold what a client sent.
"""

import logging
import sys
import warnings
from typing import Literal

import structlog


def set_up_logging(level: str, form: Literal["text", "json"], worker: int | None = None) -> None:
    """Logs from `level` on (`debug`, `info`, `warning`, `error`) to stderr; each line names the worker, of several."""
    renderers: list[structlog.types.Processor]
    if form == "json":
        renderers = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:
        plain = structlog.dev.plain_traceback
        renderers = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain, sort_keys=False)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                *([] if worker is None else [_naming(worker)]),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    # What a client can cause as often as it likes: metadata that is no UTF-8, and pictures that Pillow warns of.
    logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not record.getMessage().startswith("Invalid encoding"))
    warnings.filterwarnings("ignore", module="PIL")
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("convoy.access").setLevel(logging.INFO)  # whoever asked for it gets it, however quiet the rest is to be
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every change that it sees, ours of those that matter


def _naming(worker: int) -> structlog.types.Processor:
    def add(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**event, "worker": worker}

    return add
