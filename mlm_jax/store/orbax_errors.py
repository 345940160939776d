"""What Orbax and TensorStore say when they fail: one line of it, in the thread that asked."""

import logging
import os
import re
import sys


def reason(error: BaseException) -> str:
    """The root of an error in one line: TensorStore packs the system's own words into a page."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    text = re.sub(r"^([A-Z_]+: )?.*(local file .*?)( \[tensorstore_spec.*)?$", r"\1\2", text)[:300]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def silence_orbax() -> None:
    """Keep Orbax's tracebacks off stderr: what fails here surfaces as one exception, in the caller's thread.

    Orbax logs failures from its background threads, through absl. Where one of many reads or writes fails, it
    drops the others: asyncio then logs exceptions that nobody fetched, and a coroutine that fails when it is
    collected, or finishes after its event loop was closed, complains to `sys.unraisablehook`.
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
