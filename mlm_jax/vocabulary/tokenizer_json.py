"""The content of a `tokenizer.json`: BERT's rules in it, the library's tokenizer, a fingerprint, and what we write."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mlm_jax.errors import InputError, one_line
from mlm_jax.vocabulary.added_tokens import added_tokens_config
from mlm_jax.vocabulary.roles import BERT_ROLES, Roles
from mlm_jax.vocabulary.vocab_txt import BertRules
from mlm_jax.vocabulary.wordpiece import WORD_LENGTH_LIMIT

TOKENIZER_FILE = "tokenizer.json"
GENERIC_CLASS = "PreTrainedTokenizerFast"
"""Class of transformers that reads a `tokenizer.json` as it is."""


def rules_of(content: Mapping[str, Any]) -> BertRules | None:
    """Returns the settings of a `tokenizer.json` with BERT's rules, or None if it has others."""
    parts = [content.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer")]
    if not all(isinstance(part, dict) for part in parts):
        return None
    # Files of 2020 do not name the kind of model.
    kinds = [parts[0].get("type", "WordPiece"), *(part.get("type") for part in parts[1:])]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"] or "vocab" not in parts[0]:
        return None
    normalizer = parts[1]
    if not normalizer.get("clean_text", True):
        return None
    return BertRules(
        normalizer.get("lowercase"), normalizer.get("strip_accents"), normalizer.get("handle_chinese_chars")
    )


@contextlib.contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """Turns errors of the library within the block into an InputError: the file at `path` is not of this kind."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # The library raises a bare Exception for anything it cannot parse, and a BaseException where it panics.
    except BaseException as error:
        raise InputError(f"{path}: not {kind}: {one_line(error)}") from error


def backend_from_json(path: Path, content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a file as it is.

    Raises:
        InputError: the library rejects the file or gives other ids, or the ids of a text would be random.
    """
    with naming_file(path, f"a {TOKENIZER_FILE}"):
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    if dropout := getattr(backend.model, "dropout", None):
        raise InputError(
            f"{path}: model.dropout is {dropout:.6g}, with which a text has other ids every time: must be null"
        )
    for token in content.get("added_tokens") or []:
        if backend.token_to_id(token["content"]) != token["id"]:
            raise InputError(
                f"{path}: the added token {token['content']!r} has id {token['id']}, but the library assigns "
                f"{backend.token_to_id(token['content'])}; expected ids without gaps"
            )
    return backend


def saved_config(
    rules: Mapping[str, bool] | None,
    word_length_limit: int,
    added: Mapping[int, tokenizers.AddedToken],
    roles: Roles,
) -> dict[str, Any]:
    """Returns the `tokenizer_config.json` of a tokenizer that follows BERT's `rules`, or others if they are None."""
    if rules is None or word_length_limit != WORD_LENGTH_LIMIT:
        return {"tokenizer_class": GENERIC_CLASS, **roles.settings} | added_tokens_config(added, roles)
    return {"tokenizer_class": "BertTokenizer", **rules} | added_tokens_config(added, roles)


def fingerprint_of(backend: tokenizers.Tokenizer, roles: Roles) -> str:
    """Returns the hexadecimal sha256 of everything that determines the ids of a text."""
    settings = json.loads(backend.to_str())
    normalizer, model = settings["normalizer"], settings["model"]
    if normalizer and normalizer["type"] == "BertNormalizer" and normalizer["strip_accents"] is None:
        normalizer["strip_accents"] = normalizer["lowercase"]
    added = sorted(settings["added_tokens"], key=lambda token: token["id"])
    # Tokens that a user added are in the vocabulary of a `vocab.txt`, but not in that of a `tokenizer.json`.
    if isinstance(model["vocab"], dict):
        for token in added:
            if token["content"] not in roles.names:
                model["vocab"].pop(token["content"], None)
    else:
        # The library reads other last digits of a score than it writes.
        model["vocab"] = [[piece, float(np.float32(score))] for piece, score in model["vocab"]]
    parts = [model, normalizer, settings["pre_tokenizer"], added]
    if roles != BERT_ROLES:
        parts.append(roles.settings)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
