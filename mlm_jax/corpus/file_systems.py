"""Resolves paths and URLs to fsspec file systems."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.core import url_to_fs

from mlm_jax.errors import InputError, one_line

# Named here because fsspec's own message also suggests conda.
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}


def path_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns paths as strings. Raises InputError if `paths` is a single one, or has something else."""
    if isinstance(paths, str | os.PathLike):
        raise InputError(f"paths: found one path, {os.fspath(paths)!r}: must be a list of paths")
    for index, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"paths[{index}]: found {type(path).__name__}: must be a path or URL")
    return [os.fspath(path) for path in paths]


def file_system(path: str) -> tuple[Any, str]:
    """Returns the file system of `path` and the location in it.

    Raises:
        InputError: the protocol is unknown, the package that implements it is not installed, or it cannot be opened.
    """
    # The name of a file may have the "::" with which fsspec chains file systems.
    if "://" not in path and os.path.exists(path):
        return fsspec.filesystem("file"), os.path.abspath(path)
    try:
        return cast("tuple[Any, str]", url_to_fs(path))
    except ImportError as error:
        package = _PACKAGES.get(path.partition("://")[0])
        reason = f"needs {package}: pip install {package}" if package else f"cannot be opened: {error}"
        raise InputError(f"{path}: {reason}") from error
    # Whatever a file system raises, such as BadZipFile.
    except Exception as error:
        raise InputError(f"{path}: cannot be opened: {one_line(error)}") from error


def local_path(path: str) -> Path | None:
    """Returns the local path that `path` names, possibly as a `file://` URL; None for another URL."""
    storage, location = file_system(path)
    return Path(location) if is_local(storage) else None


def check_outside(paths: Sequence[str], output: Path) -> None:
    """Raises InputError if `output` is inside a folder of `paths`, so that its files would be read, too."""
    place = Path(os.path.realpath(output))
    for path in map(local_path, filter(None, paths)):
        if path and path.is_dir() and place.is_relative_to(os.path.realpath(path)):
            raise InputError(
                f"{output}: is inside the input folder {path}, so its files would be read as text; choose a folder "
                "outside"
            )


def is_local(files: Any) -> bool:
    """Returns True for the local file system."""
    protocol = files.protocol
    return "file" in (protocol if isinstance(protocol, tuple) else (protocol,))
