"""Memory that was freed stays with the process, for XLA's CPU backend to take again.

That backend takes the buffers of every step from malloc and frees them after it. glibc gives such large pieces back to
the kernel at once, and every step then pays for their pages anew: a third of a step of BERT-tiny was page faults.
"""

import contextlib
import ctypes

# Of malloc.h, which Python has no names for.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed, in one arena that all threads share; the process grows by up to a half for it.

    Call it before JAX starts its backends: a thread stays with the arena that it has. Does nothing where the C library
    has no `mallopt`.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Each thread's own arena would give back what it frees whatever the other two say.
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
