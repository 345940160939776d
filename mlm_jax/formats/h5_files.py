"""Opens HDF5 files of Keras's weights with h5py. Nothing outside the file is read."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer_file
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.tensor_checks import check_expansion

# Keras nests groups 5 deep, and transformers' names for it 10 deep.
_DEEPEST = 50


def import_h5py(file: Path) -> Any:
    """Returns the module h5py. Raises InputError, which names the file that needs it, if it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{file}: Keras's weights need h5py: pip install 'mlm-jax[convert]'") from error
    return h5py


def open_h5(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Returns the tensors of an existing file by their paths in it; they are read on demand, until `stack` closes.

    Raises:
        InputError: h5py is not installed, the file is damaged or refers to other files, or its tensors would need far
            more memory than it has bytes.
    """
    check_no_pointer_file(file)
    h5py = import_h5py(file)
    tensors: dict[str, Tensor] = {}

    # A visit ends with the first result that is not None, which must not be an exception.
    def elsewhere(name: str, link: Any) -> str | None:
        # The time of a visit is quadratic in the depth.
        return name if name.count("/") > _DEEPEST or not isinstance(link, h5py.HardLink) else None

    def visit(name: str, found: Any) -> str | None:
        if not isinstance(found, h5py.Dataset):
            return None
        tensors[name] = Tensor(tuple(found.shape or ()), partial(_array, file, name, found))
        return name if found.external or found.is_virtual else None

    try:
        opened = stack.enter_context(h5py.File(file, "r"))
        refused = opened.visititems_links(elsewhere) or opened.visititems(visit)
    # h5py raises OSError, KeyError, RuntimeError and others for damaged files.
    except Exception as error:
        raise InputError(f"{file}: damaged or truncated: {one_line(error)}") from error
    if refused:
        if refused.count("/") > _DEEPEST:
            raise InputError(f"{file}: refused: groups nested more than {_DEEPEST} deep")
        raise InputError(f"{file}: refused: {refused} is stored elsewhere: must be in this file")
    check_expansion(file, [tensor.shape for tensor in tensors.values()])
    return tensors


def _array(file: Path, name: str, dataset: Any) -> np.ndarray:
    try:
        array = np.asarray(dataset[()])
        # HDF5 has no bfloat16: Keras stores the bits and adds an attribute.
        bits = dataset.attrs.get("dtype") == "bfloat16" and array.dtype.itemsize == 2
    except Exception as error:
        raise InputError(f"{file}: tensor {name}: damaged: {one_line(error)}") from error
    return array.view(ml_dtypes.bfloat16) if bits else array
