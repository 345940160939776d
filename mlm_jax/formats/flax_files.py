"""Opens flax_model.msgpack, the weights of transformers' Flax classes: nested dicts of arrays."""

import mmap
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer_file
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.torch_layout import as_in_torch, flax_path

FLAX_WEIGHTS_FILE = "flax_model.msgpack"


def open_flax(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Returns the tensors of a file by torch's names and in its layout.

    The arrays are in memory, so `stack`, which closes other files, has nothing to close.

    Raises:
        InputError: the file is missing, damaged or truncated, contains anything but arrays, or has two tensors of one
            name that are not equal.
    """
    del stack
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    check_no_pointer_file(file)
    try:
        # Mapped, because the bytes of the whole file would be in memory beside all arrays. msgpack takes any buffer.
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tree = msgpack_restore(content)  # type: ignore[arg-type]
        arrays: dict[tuple[Any, ...], Any] = flatten_dict(tree)
    # msgpack, flax and NumPy raise ValueError, TypeError, KeyError, RecursionError and others for damaged files.
    except Exception as error:
        raise InputError(f"{file}: damaged or truncated: {one_line(error)}") from error
    tensors: dict[str, Tensor] = {}
    for path, array in arrays.items():
        if not all(isinstance(part, str) for part in path) or not isinstance(array, np.ndarray):
            raise InputError(f"{file}: refused: must contain nested dicts of arrays and nothing else")
        name = "/".join(path)
        if name in tensors:
            raise InputError(f"{file}: tensor {name} exists twice")
        tensors[name] = Tensor(array.shape, partial(np.asarray, array))
    return as_in_torch(file, tensors, flax_path)
