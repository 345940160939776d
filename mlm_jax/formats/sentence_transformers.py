"""Reads which vectors of texts a folder of sentence-transformers is for: its pooling and further layers."""

from pathlib import Path

from mlm_jax.errors import InputError
from mlm_jax.files.checksums import is_plain_name
from mlm_jax.files.json_files import read_json, read_json_object

MODULES_FILE = "modules.json"
POOLING_FILES = "*_Pooling/config.json"

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


def sentence_vectors_note(folder: Path) -> str | None:
    """Returns which vectors of a text a folder of sentence-transformers stands for; None for other folders.

    Raises:
        InputError: modules.json is not a list of modules with a type and a path.
    """
    file = folder / MODULES_FILE
    if not file.is_file():
        return None
    found = read_json(file)
    modules = found if isinstance(found, list) else [found]
    pooling, further = "unknown", []
    for module in modules:
        kind, path = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(path, str) or not (not path or is_plain_name(path)):
            raise InputError(f"{file}: {module!r}: must be a module with a type and a path in the folder")
        name = kind.rpartition(".")[2]
        if name == "Pooling":
            pooling = _pooling(folder / path / "config.json")
        elif name != "Transformer":
            further.append(name)
    then = f", followed by {', '.join(further)}, which mlm_jax leaves out" if further else ""
    return f"{file.name}: sentence-transformers makes its vectors of texts by pooling {pooling!r}{then}"


def _pooling(file: Path) -> str:
    settings = read_json_object(file)
    chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    modes = [_MODES.get(name, name.removeprefix("pooling_mode_")) for name in chosen]
    return " + ".join(modes) or str(settings.get("pooling_mode", "unknown"))
