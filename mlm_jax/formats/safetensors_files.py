"""Opens model.safetensors of transformers' classes: of torch, or of Flax or TensorFlow until version 4."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.tensor_checks import open_tensors, read_tensor
from mlm_jax.formats.torch_layout import as_in_torch, flax_path, keras_path

WEIGHTS_FILE = "model.safetensors"


def open_safetensors(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Returns the tensors of a file by torch's names and in its layout; it stays open until `stack` closes.

    Raises:
        InputError: the file is missing, damaged or truncated.
    """
    opened = stack.enter_context(open_tensors(file))
    # A safetensors file has keys(), but cannot be iterated.
    names = list(opened.keys())
    tensors = {
        name: Tensor(tuple(opened.get_slice(name).get_shape()), partial(read_tensor, file, opened, name))
        for name in names
    }
    match _library(opened):
        case "flax":
            return as_in_torch(file, tensors, lambda name: flax_path(name.replace(".", "/")))
        case "tf":
            return as_in_torch(file, tensors, keras_path)
    return tensors


def is_of_torch(file: Path) -> bool:
    """Returns True if torch's names are in the file itself. Raises InputError if it is missing or damaged."""
    with open_tensors(file) as opened:
        return _library(opened) not in ("flax", "tf")


def _library(opened: Any) -> str | None:
    return (opened.metadata() or {}).get("format")
