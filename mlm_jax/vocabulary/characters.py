"""Vocabularies whose entries are found wherever they occur, such as the residues of proteins in ESM."""

import re
from collections.abc import Collection, Mapping

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split

# What `str.split` of Python takes for space; the library's own split at whitespace leaves U+001C to U+001F.
_SPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"


def characters_backend(
    token_ids: Mapping[str, int], unknown: str, no_text: Collection[str]
) -> tokenizers.Tokenizer:
    """Returns a tokenizer that takes the longest entry that begins at each character.

    Characters between entries and spaces together are one unknown token; spaces separate and are no tokens.

    Args:
        token_ids: entries and their ids.
        unknown: name of the unknown token.
        no_text: entries that are not found in text.
    """
    backend = tokenizers.Tokenizer(WordLevel(dict(token_ids), unk_token=unknown))
    entries = sorted((entry for entry in token_ids if entry and entry not in no_text), key=len, reverse=True)
    found = "|".join(map(re.escape, entries))
    backend.pre_tokenizer = Sequence(
        [Split(tokenizers.Regex(_SPACE), "removed"), Split(tokenizers.Regex(found), "isolated")]
    )
    return backend
