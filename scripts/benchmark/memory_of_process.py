"""Peak memory of a contestant."""

from pathlib import Path


def peak_memory(device_bytes: int | None) -> float:
    """Returns GiB: the peak of an accelerator, if given, or else that of this process, which Linux records."""
    if device_bytes is not None:
        return device_bytes / 2**30
    # Not ru_maxrss, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
