"""Progress bars for work that takes longer than two seconds, shown only if stderr is a terminal."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

ItemT = TypeVar("ItemT")

_DELAY_SECONDS = 2.0


def track(items: Iterable[ItemT], description: str, unit: str) -> "tqdm[ItemT]":
    """Returns an iterable over `items` that shows the number consumed and, if their length is known, the time left."""
    return tqdm(items, desc=description, unit=f" {unit}", delay=_DELAY_SECONDS, disable=None, leave=False)


def byte_counter(description: str) -> tqdm:
    """Returns a counter of bytes with an unknown total; call its `update`, and `close` at the end."""
    return tqdm(desc=description, unit="B", unit_scale=True, delay=_DELAY_SECONDS, disable=None, leave=False)
