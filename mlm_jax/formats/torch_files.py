"""Opens the weights of published torch models: safetensors or pickles, in one file or several with an index."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from mlm_jax.errors import InputError, one_line
from mlm_jax.formats.model_folder import open_tensors, read_json_object
from mlm_jax.formats.name_table import Tensor

WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"


def open_weights(folder: Path, stack: ExitStack) -> tuple[dict[str, Tensor], list[Path]]:
    """Returns the tensors of a folder's weights and their files, which stay open until `stack` closes.

    Raises:
        InputError: there are no weights, a file is missing, damaged or truncated, or a pickle contains anything but
            tensors. Nothing in such a pickle is executed.
    """
    for name, opener in ((WEIGHTS_FILE, _open_safetensors), (PICKLED_WEIGHTS_FILE, _open_pickled)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return opener(folder / name, stack), [folder / name]
        if index.is_file():
            return _open_shards(index, opener, stack)
    raise InputError(f"{folder}: no weights: expected {WEIGHTS_FILE} or {PICKLED_WEIGHTS_FILE}")


def _open_shards(index: Path, opener: Any, stack: ExitStack) -> tuple[dict[str, Tensor], list[Path]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map: must map each tensor to its file")
    files = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.parent != index.parent:
            raise InputError(f"{index}: names {file}: must be a file in the same folder")
        tensors |= opener(file, stack)
    missing = set(weight_map) - set(tensors)
    if missing:
        raise InputError(f"{index}: tensor {min(missing)} is not in {weight_map[min(missing)]}")
    return tensors, files


def _open_safetensors(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    opened = stack.enter_context(open_tensors(file))

    def read(name: str) -> np.ndarray:
        try:
            return opened.get_tensor(name)
        except (SafetensorError, TypeError) as error:
            raise InputError(f"{file}: tensor {name}: {one_line(error)}") from error

    # A safetensors file has keys(), but cannot be iterated.
    names = list(opened.keys())
    return {name: Tensor(tuple(opened.get_slice(name).get_shape()), partial(read, name)) for name in names}


def _open_pickled(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{file}: reading it needs torch: pip install 'mlm-jax[convert]'") from error
    try:
        # With weights_only, torch calls only functions on its own list.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:
        raise InputError(
            f"{file}: refused: not a plain file of tensors, or damaged: {one_line(error)}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{file}: refused: must contain a dict of tensors and nothing else")
    return {name: Tensor(tuple(tensor.shape), partial(_as_numpy, tensor)) for name, tensor in state.items()}


def _as_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _is_zip(file: Path) -> bool:
    # torch has written zip files since version 1.6. Older files cannot be memory-mapped.
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"
