"""Opens the weights in transformers' folders: of torch, Flax or TensorFlow, in one file or several with an index."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from mlm_jax.errors import InputError
from mlm_jax.files.checksums import is_plain_name
from mlm_jax.files.json_files import read_json_object
from mlm_jax.files.links import check_no_broken_links
from mlm_jax.formats.flax_files import FLAX_WEIGHTS_FILE, open_flax
from mlm_jax.formats.name_table import Tensor
from mlm_jax.formats.safetensors_files import WEIGHTS_FILE, is_of_torch, open_safetensors
from mlm_jax.formats.tensor_checks import some
from mlm_jax.formats.tf_h5_files import TF_WEIGHTS_FILE, open_tf_h5
from mlm_jax.formats.torch_files import PICKLED_WEIGHTS_FILE, open_pickled
from mlm_jax.formats.torch_layout import flax_path, torch_name

_INDEX = ".index.json"
# Of adapters, and of other names, which messages mention.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


class _Kind(NamedTuple):
    """A file of weights."""

    name: str
    open: Callable[[Path, ExitStack], dict[str, Tensor]]
    """Returns the tensors of a file by torch's names."""
    rename: Callable[[str], str] = str
    """Translates a name in the index of several files to torch's."""
    has_index: bool = True
    """False if several files with an index are not supported."""


# In the order in which transformers prefers those of torch. The others are conversions of the same weights.
_KINDS = (
    _Kind(WEIGHTS_FILE, open_safetensors),
    _Kind(PICKLED_WEIGHTS_FILE, open_pickled),
    _Kind(FLAX_WEIGHTS_FILE, open_flax, lambda name: torch_name(flax_path(name))),
    _Kind(TF_WEIGHTS_FILE, open_tf_h5, has_index=False),
)


def has_weights(folder: Path) -> bool:
    """Returns True if the folder has weights of these names."""
    return _find(folder) is not None


def open_weights(folder: Path, stack: ExitStack) -> tuple[dict[str, Tensor], list[Path]]:
    """Returns the tensors of a folder's weights by torch's names, and their files, open until `stack` closes.

    If there are weights of several libraries, those of torch are opened.

    Raises:
        InputError: there are no weights, a file is missing, damaged or truncated, contains anything but tensors, or its
            tensors would need far more memory than it has bytes; or the library that reads it is not installed.
            Nothing in a pickle is executed.
    """
    found = _find(folder)
    if found is None:
        if (index := folder / f"{TF_WEIGHTS_FILE}{_INDEX}").is_file():
            raise InputError(
                f"{index}: TensorFlow's weights in several files are not supported: must be in one, {TF_WEIGHTS_FILE}, "
                f"or in {WEIGHTS_FILE}"
            )
        check_no_broken_links(folder, [Path(kind.name).suffix for kind in _KINDS])
        others = [path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS and path.is_file()]
        *names, last = [kind.name for kind in _KINDS]
        raise InputError(
            f"{folder}: no weights: expected {', '.join(names)} or {last}"
            f"{f'; found {some(others)}' if others else ''}"
        )
    file, kind = found
    return _open_shards(file, kind, stack) if file.name.endswith(_INDEX) else (kind.open(file, stack), [file])


def are_of_torch(files: list[Path]) -> bool:
    """Returns True if the files have torch's names and layouts, without which transformers 5 cannot read them."""
    return all(
        is_of_torch(file) if file.suffix == ".safetensors" else file.suffix == ".bin" for file in files
    )


def _find(folder: Path) -> tuple[Path, _Kind] | None:
    for kind in _KINDS:
        for name in (kind.name, *([kind.name + _INDEX] if kind.has_index else [])):
            if (folder / name).is_file():
                return folder / name, kind
    return None


def _open_shards(index: Path, kind: _Kind, stack: ExitStack) -> tuple[dict[str, Tensor], list[Path]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map: must map each tensor to its file")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not is_plain_name(shard):
            raise InputError(f"{index}: names {shard!r}: must be a file in the same folder")
    files = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = kind.open(file, stack)
        if twice := tensors.keys() & found.keys():
            raise InputError(f"{index}: tensor {min(twice)} is in more than one file")
        tensors |= found
    listed = {kind.rename(name): shard for name, shard in weight_map.items()}
    missing = set(listed) - set(tensors)
    if missing:
        raise InputError(f"{index}: tensor {min(missing)} is not in {listed[min(missing)]}")
    return tensors, files
