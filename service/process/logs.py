"""The log format: text for people or JSON for programs. All modules log with the standard library's `logging`.

Tracebacks are printed without the values of variables, which may hold data of a client.
"""

import logging
import sys
import traceback
from typing import Any, Literal, TextIO

import structlog

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:x}" for code in (0x2028, 0x2029)
}
"""How characters that a terminal or a reader of lines takes for commands are written: C0, DEL, C1, and Unicode's line ends."""

_JSON_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(127, 160), 0x2028, 0x2029)}
"""The same for JSON, which escapes C0 alone."""


def set_up_logging(level: str, form: Literal["text", "json"], worker: int | None = None) -> None:
    """Logs to stderr, from `level` up: `debug`, `info`, `warning` or `error`. With `worker`, each line has its number."""
    renderers: list[structlog.types.Processor]
    if form == "json":
        renderers = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            _escape_surrogates,
            # In another encoding stderr escapes what it does not have, in a way that JSON does not know.
            structlog.processors.JSONRenderer(ensure_ascii=getattr(sys.stderr, "encoding", "").lower() != "utf-8"),
            _escape_controls_in_json,
        ]
    else:
        renderers = [
            _escape_controls,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback, sort_keys=False),
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                *([] if worker is None else [_add_worker(worker)]),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    # A client could fill the log with these.
    logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not record.getMessage().startswith("Invalid encoding"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("convoy.access").setLevel(logging.INFO)  # whatever --log-level is: it has a flag of its own
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs every file change; the repository logs those that matter


def _escape_controls(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Escapes line ends and control characters, with which the name of a file or of a client's could forge lines."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = value.translate(_CONTROLS)
    return event


def _escape_controls_in_json(_: object, __: str, line: Any) -> Any:
    """Escapes control characters in a line of JSON, where they are parts of texts."""
    return line.translate(_JSON_CONTROLS)


def _write_traceback(output: TextIO, exc_info: Any) -> None:
    """Writes a traceback, indented: the text of an error may have line ends too."""
    for line in "".join(traceback.format_exception(*exc_info)).rstrip("\n").split("\n"):
        output.write(f"\n    {line.translate(_CONTROLS)}")


def _escape_surrogates(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Escapes the bytes of paths that are not UTF-8: they are lone surrogates in Python's texts, which JSON does not have."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = value.encode(errors="backslashreplace").decode()
    return event


def _add_worker(worker: int) -> structlog.types.Processor:
    def add(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**event, "worker": worker}

    return add
