"""Opens the weights of published torch models: safetensors or pickles, in one file or several with an index."""

import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.checksums import is_plain_name
from mlm_jax.files.git_lfs import check_no_pointer_file
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.tensor_checks import check_expansion, open_tensors, read_tensor, some

WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
_INDEX = ".index.json"
# Precedes the cause in torch's messages.
_CAUSE = "WeightsUnpickler error: "
# In the order in which transformers prefers them.
_FILES = (WEIGHTS_FILE, WEIGHTS_FILE + _INDEX, PICKLED_WEIGHTS_FILE, PICKLED_WEIGHTS_FILE + _INDEX)
# Of adapters, of TensorFlow and Flax in transformers, and of other names, which messages mention.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def has_weights(folder: Path) -> bool:
    """Returns True if the folder has weights of these names."""
    return any((folder / name).is_file() for name in _FILES)


def open_weights(folder: Path, stack: ExitStack) -> tuple[dict[str, Tensor], list[Path]]:
    """Returns the tensors of a folder's weights and their files, which stay open until `stack` closes.

    Raises:
        InputError: there are no weights, a file is missing, damaged or truncated, a pickle contains anything but
            tensors, or its tensors would need far more memory than it has bytes. Nothing in a pickle is executed.
    """
    for name in _FILES:
        if (folder / name).is_file():
            opener = _open_safetensors if ".safetensors" in name else _open_pickled
            if name.endswith(_INDEX):
                return _open_shards(folder / name, opener, stack)
            return opener(folder / name, stack), [folder / name]
    others = [path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS and path.is_file()]
    found = f"; found {some(others)}" if others else ""
    raise InputError(f"{folder}: no weights: expected {WEIGHTS_FILE} or {PICKLED_WEIGHTS_FILE}{found}")


def _open_shards(index: Path, opener: Any, stack: ExitStack) -> tuple[dict[str, Tensor], list[Path]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map: must map each tensor to its file")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not is_plain_name(shard):
            raise InputError(f"{index}: names {shard!r}: must be a file in the same folder")
    files = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = opener(file, stack)
        if twice := tensors.keys() & found.keys():
            raise InputError(f"{index}: tensor {min(twice)} is in more than one file")
        tensors |= found
    missing = set(weight_map) - set(tensors)
    if missing:
        raise InputError(f"{index}: tensor {min(missing)} is not in {weight_map[min(missing)]}")
    return tensors, files


def _open_safetensors(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    opened = stack.enter_context(open_tensors(file))
    # A safetensors file has keys(), but cannot be iterated.
    names = list(opened.keys())
    return {
        name: Tensor(tuple(opened.get_slice(name).get_shape()), partial(read_tensor, file, opened, name))
        for name in names
    }


def _open_pickled(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    check_no_pointer_file(file)
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{file}: reading it needs torch: pip install 'mlm-jax[convert]'") from error
    try:
        # With weights_only, torch calls only functions on its own list.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_uncompressed_zip(file))
    except InputError:
        raise
    except Exception as error:
        # torch's advice comes before the cause, and is to run whatever the file contains.
        causes = str(error).partition(_CAUSE)[2].strip().splitlines()
        cause = causes[0].partition(". ")[0] if causes else one_line(error)
        raise InputError(
            f"{file}: refused: not a plain file of tensors, or damaged: {cause[:200]}: must be as torch writes a "
            "state_dict"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and not value.is_nested
        for name, value in state.items()
    ):
        raise InputError(f"{file}: refused: must contain a dict of tensors and nothing else")
    check_expansion(file, [tuple(tensor.shape) for tensor in state.values()])
    return {
        name: Tensor(tuple(tensor.shape), partial(_as_numpy, file, name, tensor))
        for name, tensor in state.items()
    }


def _as_numpy(file: Path, name: str, tensor: Any) -> np.ndarray:
    import torch

    try:
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    # Sparse, quantized and 8-bit tensors.
    except Exception as error:
        raise InputError(f"{file}: tensor {name} of {tensor.dtype}: {one_line(error)}") from error


def _is_uncompressed_zip(file: Path) -> bool:
    """Returns True if torch can map the file into memory: it has written zip files since version 1.6.

    Raises:
        InputError: a member is compressed or does not match its CRC-32. torch never compresses, would map compressed
            bytes as numbers, and does not compare checksums.
    """
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        compressed = [member.filename for member in members if member.compress_type]
        if compressed:
            raise InputError(f"{file}: {compressed[0]} is compressed: must be a file as torch writes it")
        # Members of a hostile file may overlap, and would be read many times.
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise InputError(f"{file}: refused: its members are larger than the file")
        damaged = [member.filename for member in members if not _is_intact(archive, member)]
    # torch writes files without checksums, too, in which none matches.
    if 0 < len(damaged) < len(members):
        raise InputError(f"{file}: damaged: {damaged[0]} does not match its checksum in the file")
    return True


def _is_intact(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Returns True if a member matches its CRC-32."""
    try:
        with archive.open(member) as opened:
            while opened.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True
