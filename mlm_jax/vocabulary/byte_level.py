"""Byte-level BPE as in RoBERTa (Radford et al. 2019), which transformers builds from a vocabulary and its merges."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.vocabulary.roles import Roles
from mlm_jax.vocabulary.tokenizer_json import naming_file

BYTE_LEVEL_FILE, MERGES_FILE = "vocab.json", "merges.txt"

# The largest published files have about 300,000 merges and 5 MB.
_LARGEST_BYTES = 1 << 28


def byte_level_backend(
    file: Path, token_ids: Mapping[str, int], merges: Sequence[Any], *, add_prefix_space: bool
) -> tokenizers.Tokenizer:
    """Returns the tokenizer without special tokens.

    Args:
        file: begins the messages.
        token_ids: ids of the entries.
        merges: pairs of entries, or strings of two entries with a space between them.
        add_prefix_space: True reads a text as if a space preceded it.

    Raises:
        InputError: an id is no number, or a merge is not of entries.
    """
    with naming_file(file, "a byte-level BPE"):
        pairs: list[Any] = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        backend = tokenizers.Tokenizer(BPE(vocab=dict(token_ids), merges=pairs, fuse_unk=False))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = ByteLevelDecoder()
    return backend


def frame_texts(backend: tokenizers.Tokenizer, roles: Roles) -> None:
    """Adds the special tokens that are not yet added, and frames texts with them as RoBERTa does."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([name for name in dict.fromkeys(roles.names) if name not in added])
    token_ids = backend.get_vocab(with_added_tokens=True)
    sep, cls = ((name, token_ids[name]) for name in (roles.sep_token, roles.cls_token))
    backend.post_processor = RobertaProcessing(sep, cls)


def read_vocabulary_and_merges(file: Path) -> tuple[dict[str, int], list[str]]:
    """Reads a `vocab.json` and the `merges.txt` beside it.

    Raises:
        InputError: a file is missing or damaged.
    """
    merges = file.with_name(MERGES_FILE)
    if not merges.is_file():
        raise InputError(f"{merges}: no such file; expected the merges of {file}")
    if (size := merges.stat().st_size) > _LARGEST_BYTES:
        raise InputError(
            f"{merges}: {size / 1e6:.0f} MB: must be at most {_LARGEST_BYTES / 1e6:.0f} MB, one merge per line"
        )
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{merges}: not UTF-8: {error.reason} at byte {error.start}") from error
    # The first line may state the version of the file.
    lines = lines[1:] if lines[0].startswith("#version") else lines
    return read_json_object(file), [line for line in lines if line]
