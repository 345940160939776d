"""The last word of a process that its runtime aborts.

When the process that coordinates a job dies, the runtime of all others calls abort() from a thread of its own, within
milliseconds. Python's handlers never run then: only one that C calls does.
"""

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextmanager
def on_abort(last_words: Callable[[], None]) -> Iterator[None]:
    """A context in which SIGABRT calls `last_words`, which is to end the process; it dies anyway."""
    handler = _Handler(lambda number: last_words())
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)
