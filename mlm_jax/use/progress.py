"""Progress bars for calls that may take longer than two seconds. Commands enable them."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from tqdm import tqdm

ResultT = TypeVar("ResultT")


def progress_bar(total: int | None, unit: str, *, shown: bool) -> tqdm:
    """Returns a bar that appears on stderr after two seconds, if `shown` is true and stderr is a terminal."""
    return tqdm(total=total, unit=unit, delay=2, disable=None if shown else True, leave=False)


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
