"""Structured logs by structlog, on standard error. Secrets never reach a log call; see each service's README."""

import logging
import sys

import structlog

from services.runtime.settings import RuntimeSettings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(settings: RuntimeSettings) -> None:
    """Sets up structlog and the standard library's logging for this process. Call once, before any service starts.

    Tracebacks are without the values of variables: those are prompts, keys, whole records.
    """
    level = _LEVELS[settings.log_level]
    rendering: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
            foreign_pre_chain=shared,
        )
    )
    handler.addFilter(_is_news)
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Leaves out what aiokafka calls an error and is the ordinary first second of a new cluster: it asks again."""
    return "GroupCoordinatorNotAvailableError" not in record.getMessage()
