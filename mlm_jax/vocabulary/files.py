"""Reads a tokenizer as its makers meant it: with the ids of transformers or KerasHub for the same folder.

What cannot be read in this way is rejected, and the error names the tokenizer's class.
"""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.files.links import SETTINGS_SUFFIXES, check_no_broken_links
from mlm_jax.vocabulary.byte_level import BYTE_LEVEL_FILE, MERGES_FILE
from mlm_jax.vocabulary.folder_settings import (
    SENTENCEPIECE_FILES,
    SENTENCEPIECE_SUFFIXES,
    TOKENIZER_CONFIG_FILE,
    VOCABULARY_FILE,
    FolderSettings,
)
from mlm_jax.vocabulary.keras_hub_files import read_keras_hub
from mlm_jax.vocabulary.roles import BERT_ROLES, Roles
from mlm_jax.vocabulary.tokenizer_json import TOKENIZER_FILE
from mlm_jax.vocabulary.transformers_folder import (
    read_byte_level,
    read_sentencepiece_model,
    read_tokenizer_json,
    read_vocabulary_file,
)
from mlm_jax.vocabulary.vocab_txt import BertRules

TOKENIZER_FILES = (
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    TOKENIZER_CONFIG_FILE,
    "added_tokens.json",
    "special_tokens_map.json",
    BYTE_LEVEL_FILE,
    MERGES_FILE,
    *SENTENCEPIECE_FILES,
)
"""All files that determine a tokenizer, except the `config.json` of a model, which may name its class."""


def load_backend(
    path: Path, *, lowercase: bool | None, strip_accents: bool | None
) -> tuple[tokenizers.Tokenizer, Path, Roles]:
    """Returns the tokenizer at `path`, a file or a folder, the file that has its vocabulary, and its special tokens.

    Raises:
        InputError: a file is missing or damaged, files contradict each other, or the tokenizer is of another kind.
    """
    folder = FolderSettings(path if path.is_dir() else path.parent)
    file = _find(path, folder)
    given = BertRules(lowercase, strip_accents)
    # The vocabulary of a KerasHub preset is in assets/ or assets/tokenizer/.
    near = [file.parents[depth] / TOKENIZER_FILE for depth in (1, 2) if depth < len(file.parents)]
    if file.name == TOKENIZER_FILE:
        near = [file]
    elif file.name != "vocabulary.txt":
        near = []
    for place in near:
        content = folder.tokenizer_json if place == file else read_json_object(place)
        if "registered_name" in content:
            return (*read_keras_hub(place, content, given), BERT_ROLES)
    folder.check(file)
    readers = {TOKENIZER_FILE: read_tokenizer_json, BYTE_LEVEL_FILE: read_byte_level}
    reader = readers.get(file.name, read_vocabulary_file)
    if file.suffix in SENTENCEPIECE_SUFFIXES:
        reader = read_sentencepiece_model
    backend = reader(folder, file, given)
    roles = folder.roles(backend)
    # As for roles that files name, which they do once the tokenizer is saved: it must not differ from this one.
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    entries = [name for name in dict.fromkeys(roles.names) if backend.token_to_id(name) is not None]
    backend.add_tokens([AddedToken(name, special=True) for name in entries if name not in known])
    return backend, file, roles


def _find(path: Path, folder: FolderSettings) -> Path:
    if path.is_dir():
        check_no_broken_links(path, SETTINGS_SUFFIXES)
        files = folder.files()
        if not files:
            if (path / "assets").is_dir():
                raise InputError(f"{path}: no {TOKENIZER_FILE}, in which KerasHub stores its settings")
            expected = (TOKENIZER_FILE, VOCABULARY_FILE, BYTE_LEVEL_FILE, *SENTENCEPIECE_FILES)
            raise InputError(
                f"{path}: no tokenizer here; expected {', '.join(expected[:-1])} or {expected[-1]}"
            )
        return files[0]
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {TOKENIZER_FILE}, {VOCABULARY_FILE} or a folder")
    return path
