"""Processor and software versions of a measurement."""

import os
import platform
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version


@dataclass(frozen=True)
class Machine:
    """A processor and the software versions that ran on it."""

    date: str
    processor: str
    cores: int
    python: str
    jax: str
    flax: str

    def as_markdown(self) -> str:
        """Returns a line of Markdown."""
        return (
            f"{self.date}; {self.processor}, {self.cores} cores; Python {self.python}, jax {self.jax}, "
            f"flax {self.flax}"
        )


def this_machine() -> Machine:
    """Returns the machine of this process."""
    return Machine(
        date=date.today().isoformat(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        jax=version("jax"),
        flax=version("flax"),
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
