"""Logs: one JSON object a line under a service manager, plain lines on a terminal. Never a secret in either.

Structured fields go in `extra={"fields": {...}}`.
"""

import json
import logging
import os
import sys
import time
from typing import Final, TextIO

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal would obey: what a control plane said may be in it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class JsonFormatter(logging.Formatter):
    """`{"at", "level", "logger", "message", ...fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanFormatter(logging.Formatter):
    """`12:03:04 message  key=value`; levels above info are named."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it where there is one."""
        fields = "".join(f"  {key}={printable(str(value))}" for key, value in getattr(record, "fields", {}).items())
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class LineHandler(logging.StreamHandler[TextIO]):
    """Standard error, for as long as somebody reads it. A log without a reader must end neither run nor shutdown."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Write to nowhere once the reader has gone; what is still in the buffer goes there too."""
        if not isinstance(sys.exc_info()[1], OSError):
            return super().handleError(record)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
        return None


def set_up(log_format: str, log_level: str) -> None:
    """Log to standard error. `auto` is JSON under a service manager and human otherwise."""
    managed = "INVOCATION_ID" in os.environ or not sys.stderr.isatty()
    as_json = log_format == "json" or (log_format == "auto" and managed)
    handler = LineHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else HumanFormatter())
    logging.basicConfig(level=_LEVELS[log_level], handlers=[handler], force=True)
    # httpx logs every request with its URL at info, which is a line a second on a busy agent.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
