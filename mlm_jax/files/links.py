"""Recognizes links to nothing, which a copy of part of a hub's cache has in place of files."""

from collections.abc import Collection
from pathlib import Path

from mlm_jax.errors import InputError

SETTINGS_SUFFIXES = (".json", ".txt", ".model")
"""Suffixes of files that change the meaning of a model or a tokenizer by their absence."""


def check_no_broken_links(folder: Path, suffixes: Collection[str]) -> None:
    """Raises InputError if a file with one of these suffixes is a link to nothing: it would count as absent."""
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path.is_symlink() and not path.exists():
            raise InputError(
                f"{path}: is a link to {path.readlink()}, which does not exist; copy the file itself"
            )
