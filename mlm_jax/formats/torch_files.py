"""Opens pytorch_model.bin, a pickle of torch's tensors."""

import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer_file
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.tensor_checks import check_expansion, some

PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
# Precedes the cause in torch's messages.
_CAUSE = "WeightsUnpickler error: "


def open_pickled(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Returns the tensors of a file that torch wrote, which stays mapped into memory as long as they are used.

    Raises:
        InputError: torch is not installed, the file is missing, damaged or truncated, contains anything but tensors, or
            its tensors would need far more memory than it has bytes. Nothing in it is executed.
    """
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
        cause = (causes[0] if causes else one_line(error)).partition(". ")[0]
        raise InputError(
            f"{file}: refused: not a plain file of tensors, or damaged: {cause[:200]}: must be as torch writes a "
            "state_dict"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and not value.is_nested
        for name, value in state.items()
    ):
        raise InputError(f"{file}: refused: must contain a dict of tensors and nothing else{_hint(state)}")
    check_expansion(file, [tuple(tensor.shape) for tensor in state.values()])
    return {
        name: Tensor(tuple(tensor.shape), partial(_as_numpy, file, name, tensor))
        for name, tensor in state.items()
    }


def _hint(state: Any) -> str:
    """Returns what a file has besides tensors, such as the state of an optimizer, and where its weights are."""
    import torch

    if not isinstance(state, Mapping):
        return f"; found a {type(state).__name__}"
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    for name in others:
        value = state[name]
        if (
            isinstance(value, Mapping)
            and value
            and all(isinstance(each, torch.Tensor) for each in value.values())
        ):
            return f"; its weights are in {name!r}, which must be saved alone"
    return f"; found also {some(map(str, others))}" if others else ""


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
