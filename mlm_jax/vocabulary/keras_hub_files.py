"""The tokenizer of a KerasHub preset: BERT's rules, with the settings in its `tokenizer.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.vocabulary.vocab_txt import BertRules, read_vocabulary
from mlm_jax.vocabulary.wordpiece import CONTINUATION_PREFIX, bert_backend

# Settings of KerasHub's tokenizer that change ids, in the presets of other tokenizers of WordPiece.
_REQUIRED = {"split": True, "suffix_indicator": CONTINUATION_PREFIX, "oov_token": "[UNK]"}


def read_keras_hub(
    file: Path, content: Mapping[str, Any], given: BertRules
) -> tuple[tokenizers.Tokenizer, Path]:
    """Returns the tokenizer of a preset and the file of its vocabulary.

    Args:
        file: its `tokenizer.json`.
        content: the content of that file.
        given: settings that replace those of the file.

    Raises:
        InputError: the preset has another tokenizer, or a setting or file is missing or damaged.
    """
    kind = str(content["registered_name"]).rsplit(">", maxsplit=1)[-1]
    if kind != "BertTokenizer":
        raise InputError(f"{file}: {kind} is not supported; expected KerasHub's BertTokenizer")
    # The folder of assets has been named after the tokenizer since KerasHub 0.14.
    places = [file.parent / "assets" / name for name in ("tokenizer/vocabulary.txt", "vocabulary.txt")]
    vocabulary = next((place for place in places if place.is_file()), None)
    if vocabulary is None:
        raise InputError(f"{places[0]}: no such file; expected the vocabulary of {file}")
    stated = content.get("config") or {}
    if not isinstance(stated, dict):
        raise InputError(f"{file}: config must be an object")
    settings = {"lowercase": False, "strip_accents": False} | stated
    for name in ("lowercase", "strip_accents"):
        if not isinstance(settings[name], bool):
            raise InputError(f"{file}: {name} = {settings[name]!r}: must be true or false")
    for name, value in _REQUIRED.items():
        if settings.get(name, value) != value:
            raise InputError(
                f"{file}: {name} = {settings[name]!r} is not supported: must be {value!r}, as in BERT"
            )
    lowercase = settings["lowercase"] if given.do_lower_case is None else given.do_lower_case
    strip = settings["strip_accents"] if given.strip_accents is None else given.strip_accents
    return bert_backend(read_vocabulary(vocabulary), lowercase=lowercase, strip_accents=strip), vocabulary
