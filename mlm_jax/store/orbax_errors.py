"""Turns errors of Orbax and TensorStore into one line, in the caller's thread."""

import logging
import os
import re
import sys


def reason(error: BaseException) -> str:
    """Returns the root cause of an error in one line; TensorStore wraps the system's message in a page of text."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    text = re.sub(r"^([A-Z_]+: )?.*(local file .*?)( \[tensorstore_spec.*)?$", r"\1\2", text)[:300]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def silence_orbax() -> None:
    """Keeps Orbax's tracebacks off stderr: a failure surfaces as one exception, in the caller's thread.

    Orbax logs failures of its background threads through absl. If one of many reads or writes fails, it drops the
    others: asyncio then logs exceptions that were never retrieved, and coroutines that fail when they are collected, or
    finish after their event loop was closed, report to `sys.unraisablehook`.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname + record.getMessage()

    report = sys.unraisablehook

    def report_other(unraisable: "sys.UnraisableHookArgs") -> None:
        code = getattr(unraisable.object, "cr_code", None)
        is_orbax = code is not None and "orbax" in code.co_filename
        if not is_orbax and str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    logging.getLogger("absl").addFilter(is_other)
    logging.getLogger("asyncio").addFilter(is_other)
    sys.unraisablehook = report_other
