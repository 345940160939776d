"""Progress of work on a device. The bars are those of `mlm_jax.text.progress`."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from tqdm import tqdm

ResultT = TypeVar("ResultT")


def counted(results: Iterable[ResultT], bar: tqdm, rows: int) -> Iterator[ResultT]:
    """Yields results computed by a device, and adds `rows` to the bar for each finished result.

    Waits only for the result before the latest, so that the device always has work.
    """
    previous = None
    for latest in results:
        if previous is not None:
            jax.block_until_ready(previous)
            bar.update(rows)
        previous = latest
        yield latest
