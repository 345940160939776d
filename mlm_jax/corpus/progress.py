"""Progress bars for work that takes longer than two seconds, shown only if stderr is a terminal."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

ItemT = TypeVar("ItemT")

_DELAY_SECONDS = 2.0


def track(items: Iterable[ItemT], description: str, unit: str) -> "tqdm[ItemT]":
    """Returns an iterable over `items` that shows the number consumed and, if their length is known, the time left."""
    return _bar(iterable=items, desc=description, unit=f" {unit}")


def byte_counter(description: str) -> tqdm:
    """Returns a counter of bytes with an unknown total; call its `update`, and `close` at the end."""
    return _bar(desc=description, unit="B", unit_scale=True)


def progress_bar(total: int | None, unit: str, *, shown: bool) -> tqdm:
    """Returns a bar to `update`, which is hidden on terminals, too, unless `shown` is true."""
    return _bar(total=total, unit=unit, disable=None if shown else True)


def _bar(*, disable: bool | None = None, **options: Any) -> tqdm:
    return tqdm(delay=_DELAY_SECONDS, disable=disable, leave=False, **options)
