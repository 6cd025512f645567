"""Logs: structured, as JSON for machines or in colour for people. Never a token, never a payload."""

import io
import logging
import re
import sys
from typing import TextIO

import structlog

from service.settings import Settings

# What PostgreSQL says below its message may be the whole of a row, payloads too.
DETAIL = re.compile(r"^\s*DETAIL:.*", re.MULTILINE)
WITHHELD = "DETAIL:  (withheld: it may hold a payload)"


def configure(settings: Settings) -> None:
    """Set the format and the level for this process."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.types.Processor] = (
        [
            # Without the locals of the frames: they hold payloads and tokens.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            _withhold_details,
            structlog.processors.JSONRenderer(),
        ]
        if settings.log_format == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries log takes the same form.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def _withhold_details(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for part in event.get("exception", ()):
        if isinstance(part, dict):
            part["exc_value"] = DETAIL.sub(WITHHELD, part["exc_value"])
    return event


def _plain_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    drawn = io.StringIO()
    structlog.dev.plain_traceback(drawn, exc_info)
    out.write(DETAIL.sub(WITHHELD, drawn.getvalue()))
