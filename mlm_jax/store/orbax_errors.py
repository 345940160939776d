"""Reduces errors of Orbax and TensorStore to one line, in the caller's thread."""

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def reason(error: BaseException) -> str:
    """Returns the root cause of an error on one line. TensorStore wraps the system's message in a page of text."""
    global _has_failed  # noqa: PLW0603
    _has_failed = True
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    text = re.sub(r"^([A-Z_]+: )?.*(local file .*?)( \[tensorstore_spec.*)?$", r"\1\2", text)[:300]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


@contextmanager
def orbax_silenced() -> Iterator[None]:
    """Keeps Orbax's tracebacks off stderr within the context. Failures still raise an exception in the caller's thread.

    Orbax logs failures of its background threads with absl. If one of many reads or writes fails, it drops the others.
    asyncio then logs exceptions that were never retrieved, and coroutines that fail when they are collected, or finish
    after their event loop is closed, report to `sys.unraisablehook`. After a failure this may happen at any later time,
    even at exit, so the silence then lasts as long as the process. Contexts may overlap in any order.
    """
    global _open_contexts, _hook_before  # noqa: PLW0603
    with _lock:
        _open_contexts += 1
        if _open_contexts == 1 and sys.unraisablehook is not _report_others:
            _hook_before, sys.unraisablehook = sys.unraisablehook, _report_others
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(_is_not_of_orbax)
    try:
        yield
    finally:
        with _lock:
            _open_contexts -= 1
            if not _open_contexts and not _has_failed:
                if sys.unraisablehook is _report_others:
                    sys.unraisablehook = _hook_before
                for name in _LOGGERS:
                    logging.getLogger(name).removeFilter(_is_not_of_orbax)


_LOGGERS = ("absl", "asyncio")
_lock = threading.Lock()
_open_contexts = 0
# True if Orbax has failed in this process.
_has_failed = False
_hook_before = sys.unraisablehook


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname + record.getMessage()


def _report_others(unraisable: "sys.UnraisableHookArgs") -> None:
    code = getattr(unraisable.object, "cr_code", None)
    is_orbax = code is not None and "orbax" in code.co_filename
    if not is_orbax and str(unraisable.exc_value) != "Event loop is closed":
        _hook_before(unraisable)
