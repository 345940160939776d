"""Finds a model's files, in a folder or by name, and downloads them if needed.

./folder              the folder itself
bert_base_en_uncased  $MLM_JAX_HOME/models/NAME (by default ~/.cache/mlm_jax), then Hugging Face's hub
hf://user/model       Hugging Face's hub, through huggingface_hub and its cache; also hf://user/model/sub/folder,
                      and with @revision at the end: a branch, tag or commit
kaggle://handle       Kaggle's models, through kagglehub and its cache
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlm_jax.config.presets import PRESETS
from mlm_jax.config.settings import nearest_name
from mlm_jax.data.manifest import TOKENIZER_FOLDER
from mlm_jax.errors import InputError, one_line
from mlm_jax.files.checksums import CHECKSUMS_FILE
from mlm_jax.files.home import home
from mlm_jax.formats.sentence_transformers import MODULES_FILE, POOLING_FILES
from mlm_jax.vocabulary.files import TOKENIZER_FILES

# Of a file or folder, in bytes.
_LONGEST_NAME = 255
# Names of users, models and folders; neither "." nor "..".
_PART = re.compile(r"(?!\.+$)[\w.\- ]+")
# Google's uploads of the checkpoints after which the presets are named.
_REPOSITORIES: Mapping[str, str] = {
    "bert_tiny_en_uncased": "google/bert_uncased_L-2_H-128_A-2",
    "bert_small_en_uncased": "google/bert_uncased_L-4_H-512_A-8",
    "bert_medium_en_uncased": "google/bert_uncased_L-8_H-512_A-8",
    "bert_base_en_uncased": "google-bert/bert-base-uncased",
    "bert_base_en": "google-bert/bert-base-cased",
    "bert_base_zh": "google-bert/bert-base-chinese",
    "bert_base_multi": "google-bert/bert-base-multilingual-cased",
    "bert_large_en_uncased": "google-bert/bert-large-uncased",
    "bert_large_en": "google-bert/bert-large-cased",
}
# Trained by KerasHub and published on Kaggle.
_KAGGLE_HANDLES: Mapping[str, str] = {
    "bert_tiny_en_uncased_sst2": "keras/bert/keras/bert_tiny_en_uncased_sst2",
}
# Everything but weights, in any format.
_SMALL_FILES = (
    *("config.json", "bert_config.json", *TOKENIZER_FILES, "tokenizer/*", "assets/*"),
    *("metadata.json", "preprocessor.json", "task.json", "checkpoint", CHECKSUMS_FILE, "certificate.json"),
    *(MODULES_FILE, POOLING_FILES),
    # Of weights in several files, which messages name.
    *("model.weights.json", "tf_model.h5.index.json"),
)
# In the order of preference. The folder is asked for all of one kind at once, and has one kind at most.
_WEIGHT_FILES = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("model.weights.h5", "task.weights.h5"),
    ("flax_model*.msgpack", "flax_model.msgpack.index.json"),
    ("tf_model.h5",),
    ("*.ckpt*.index", "*.ckpt*.data-*"),
)


def find_model(name: str | Path, *, weights: bool = True) -> Path:
    """Returns the folder with a model's files, downloading them if needed; with `weights=False`, without weights.

    Raises:
        InputError: there is no such folder or name, or the files could not be downloaded. For built-in names, the
            message states where to put which files.
    """
    text = os.fspath(name)
    # Path("") is the current folder.
    if not text:
        raise InputError("'': must be the name or the folder of a model")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in text.split("/")):
        raise InputError(f"{text[:60]}…: must be the name or the folder of a model")
    if text.startswith("hf://"):
        return _from_hugging_face(text.removeprefix("hf://"), weights, "")
    if text.startswith("kaggle://"):
        return _from_kaggle(text.removeprefix("kaggle://"), "")
    if Path(text).is_dir():
        return Path(text)
    if Path(text).exists():
        raise InputError(f"{text}: is a file; must be the folder of a model")
    if text not in PRESETS:
        raise InputError(
            f"{text}: no such folder, and no built-in name{nearest_name(text, list(PRESETS))}; names on a hub "
            "begin with hf:// or kaggle://"
        )
    kept = home() / "models" / text
    if kept.is_dir():
        return kept
    if text in _KAGGLE_HANDLES:
        handle = _KAGGLE_HANDLES[text]
        return _from_kaggle(handle, f"; put the files of https://kaggle.com/models/{handle} into {kept}")
    repository = _REPOSITORIES[text]
    files = "config.json, vocab.txt and model.safetensors (or pytorch_model.bin)" if weights else "vocab.txt"
    return _from_hugging_face(
        repository, weights, f"; put {files} of https://huggingface.co/{repository} into {kept}"
    )


def find_tokenizer(name: str) -> Path:
    """Returns the file or folder with a tokenizer: the path `name`, or that of a model's tokenizer.

    Raises:
        InputError: `name` is that of a model, as in `find_model`, whose files could not be downloaded.
    """
    is_name = name in PRESETS or name.startswith(("hf://", "kaggle://"))
    found = find_model(name, weights=False) if is_name and not Path(name).exists() else Path(name)
    of_model = found / TOKENIZER_FOLDER
    has_own = any((found / file).is_file() for file in TOKENIZER_FILES)
    return of_model if of_model.is_dir() and not has_own else found


def _from_hugging_face(name: str, weights: bool, remedy: str) -> Path:
    """Downloads `user/model[/sub/folder][@revision]`."""
    from huggingface_hub import snapshot_download

    path, _, revision = name.partition("@")
    parts = path.split("/")
    if not all(_PART.fullmatch(part) for part in parts) or ("@" in name and not revision):
        raise InputError(
            f"hf://{name}: must be hf://user/model, hf://user/model/sub/folder, or one of them with @revision"
        )
    repository, folder = "/".join(parts[:2]), "/".join(parts[2:])
    prefix = f"{folder}/" if folder else ""

    def fetch(patterns: Sequence[str]) -> Path:
        allowed = [prefix + pattern for pattern in patterns]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=allowed)) / folder

    try:
        found = fetch(_SMALL_FILES)
        if weights:
            for patterns in _WEIGHT_FILES:
                found = fetch((*_SMALL_FILES, *patterns))
                if any(next(found.glob(pattern), None) for pattern in patterns):
                    break
    # All causes (no network, no such repository or revision, no permission) have the same remedy.
    except Exception as error:
        raise InputError(
            f"hf://{name}: not in the cache and not downloaded ({_summary(error)}){remedy}"
        ) from error
    if not found.is_dir():
        raise InputError(
            f"hf://{name}: {repository} has no folder {folder} with the files of a model{remedy}"
        )
    return found


def _from_kaggle(handle: str, remedy: str) -> Path:
    try:
        import kagglehub
    except ImportError as error:
        raise InputError(
            f"kaggle://{handle}: downloading it needs kagglehub: pip install kagglehub{remedy}"
        ) from error
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:
        raise InputError(
            f"kaggle://{handle}: not in the cache and not downloaded ({_summary(error)}){remedy}"
        ) from error


def _summary(error: Exception) -> str:
    """Returns the type of an error and the beginning of its message, which may be long."""
    text = one_line(error, 101)
    return f"{type(error).__name__}: {text[:100]}{'…' * (len(text) > 100)}"
