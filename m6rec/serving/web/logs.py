"""Logs as JSON lines, without what people wrote. Knows no route."""

import json
import logging
import sys
import traceback


class JsonLines(logging.Formatter):
    """One object a record: time, level, logger, message, and the record's ``fields``.

    An error is told by its kind and where it happened: its own words may hold a request's.

    Args:
        personal: whether errors are told with their words.
    """

    def __init__(self, personal: bool = False) -> None:
        super().__init__()
        self.personal = personal

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        line = {"time": round(record.created, 3), "level": record.levelname, "logger": record.name}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info and record.exc_info[0]:
            kind, error, frames = record.exc_info
            line["error"] = f"{kind.__name__}: {error}" if self.personal else kind.__name__
            line["at"] = "".join(traceback.format_tb(frames))
        return json.dumps(line, default=str)


def log_json(personal: bool = False) -> None:
    """Have every logger of this process write JSON lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(personal))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
