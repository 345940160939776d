"""Beginnings of words by a tokenizer's own pre-tokenizer: the tokens of each part that it makes are a word.

For some tokenizers an entry alone tells: `##ing` of WordPiece continues a word, `▁the` of Unigram begins one. For
others, such as byte-level BPE, `ing` continues a word in "singing" and begins one in "(ing" or "7ing".
"""

import json
from typing import Any

import numpy as np
import tokenizers
from tokenizers.models import Unigram, WordLevel, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer

from mlm_jax.vocabulary.unigram import WORD_MARK
from mlm_jax.vocabulary.wordpiece import CONTINUATION_PREFIX


def continuation_table(backend: tokenizers.Tokenizer, vocabulary_size: int) -> np.ndarray | None:
    """Returns bool `[vocabulary_size]`, True for entries that continue a word; None if an entry alone does not tell."""
    model, token_ids = backend.model, backend.get_vocab(with_added_tokens=True)
    if isinstance(model, WordLevel):
        # Each part is one entry.
        continuing = []
    elif isinstance(model, WordPiece) and _splits_off_prefix(backend):
        continuing = [i for entry, i in token_ids.items() if entry.startswith(CONTINUATION_PREFIX)]
    elif isinstance(model, Unigram) and WORD_MARK in token_ids and _marks_every_word(backend):
        continuing = [i for entry, i in token_ids.items() if not entry.startswith(WORD_MARK)]
    else:
        return None
    table = np.zeros(vocabulary_size, dtype=bool)
    table[continuing] = True
    # An added token is a part of its own, whatever it is called. Special ones are in no word.
    own = backend.get_vocab(with_added_tokens=False)
    for token_id, token in backend.get_added_tokens_decoder().items():
        if table[token_id] and not token.special and token.content in own:
            # The model may find it inside of a word, too.
            return None
        table[token_id] = False
    return table


def _splits_off_prefix(backend: tokenizers.Tokenizer) -> bool:
    """True if no part of a text begins with the prefix of continuations, so that only continuations have it."""
    is_prefix = backend.model.continuing_subword_prefix == CONTINUATION_PREFIX
    return is_prefix and isinstance(backend.pre_tokenizer, BertPreTokenizer)


def _marks_every_word(backend: tokenizers.Tokenizer) -> bool:
    """True if every part of a text begins with the mark, and has no other."""
    last = (pre_tokenizer_steps(backend) or [{}])[-1]
    wanted = {"type": "Metaspace", "replacement": WORD_MARK, "prepend_scheme": "always", "split": True}
    return bool({name: last.get(name) for name in wanted} == wanted)


def pre_tokenizer_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """Returns the settings of each step of the pre-tokenizer, as a `tokenizer.json` has them."""
    return _steps(backend.pre_tokenizer, "pretokenizers")


def normalizer_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """Returns the settings of each step of the normalizer, as a `tokenizer.json` has them."""
    return _steps(backend.normalizer, "normalizers")


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    settings = json.loads(part.__getstate__())
    return list(settings[name]) if settings["type"] == "Sequence" else [settings]


def continuations(encoding: tokenizers.Encoding) -> np.ndarray:
    """Returns bool `[length]`: True for tokens of the same word as the token before."""
    words = np.array(encoding.word_ids, dtype=np.int64)
    return np.concatenate([np.zeros(min(1, len(words)), bool), words[1:] == words[:-1]])
