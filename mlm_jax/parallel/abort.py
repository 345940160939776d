"""Lets a process print a last message when JAX's runtime aborts it.

When the coordinator of a job dies, the runtime of all other processes calls abort() from one of its own threads, within
milliseconds of the lost connection. That is too fast for a polling thread, and `jax_enable_recoverability` does not
prevent it. Python's signal handlers wait for the main thread, so they never run; a handler called by C does.

The handler needs the GIL. Python threads release it every 5 ms, and jax releases it in every long call. An extension
that holds it delays the end of the process until its call returns.
"""

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextmanager
def on_abort(last_words: Callable[[], None]) -> Iterator[None]:
    """Makes SIGABRT call `last_words` within the context. It should end the process; otherwise abort() does."""
    handler = _Handler(lambda number: last_words())
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)
