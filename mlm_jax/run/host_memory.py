"""Makes glibc keep freed memory for XLA's CPU backend to reuse.

That backend allocates the buffers of every step with malloc and frees them afterwards. glibc immediately returns such
large blocks to the kernel, so every step faults its pages in again. In BERT-tiny, page faults took a third of a step.
"""

import contextlib
import ctypes

# Constants of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, in one arena shared by all threads; the process grows by up to a half.

    Only commands call this, because it affects the whole process. Call it before JAX starts its backends, because a
    thread keeps its first arena. Does nothing if the C library has no `mallopt`.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Per-thread arenas would ignore the other two options and return memory to the kernel.
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
