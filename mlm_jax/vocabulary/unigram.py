"""Unigram (Kudo 2018) as transformers builds it for XLM-R, CamemBERT and ALBERT, from pieces and their scores."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from mlm_jax.errors import InputError
from mlm_jax.vocabulary.added_tokens import name_of
from mlm_jax.vocabulary.tokenizer_json import naming_file

WORD_MARK = "▁"
"""Stands for the space before a word, at the start of its first piece."""


@dataclass(frozen=True)
class Pieces:
    """Content of a SentencePiece model, or of the `tokenizer.json` that was made from one."""

    scores: Sequence[tuple[str, float]]
    """Pieces in the order of their ids, with their logarithmic probabilities."""
    character_map: bytes | None = None
    """Normalization of characters, compiled by SentencePiece."""
    added: Mapping[str, bool] = field(default_factory=dict)
    """Pieces that are no part of the segmentation: True for those that never come from text, False for those that are
    found in it before anything else."""

    def numbered_for(self, class_name: str, special: Mapping[str, Any]) -> "Pieces":
        """Returns the pieces in the order in which a class numbers those of a SentencePiece model.

        Args:
            class_name: class of transformers.
            special: special tokens by their keys in `tokenizer_config.json`.
        """
        bos, pad, eos, unknown, mask = (
            (str(name_of(special[f"{role}_token"])), 0.0) for role in ("bos", "pad", "eos", "unk", "mask")
        )
        scores = list(self.scores)
        if class_name == "XLMRobertaTokenizer":
            scores = [bos, pad, eos, unknown, *scores[3:], mask]
        elif class_name == "CamembertTokenizer":
            not_used = [("<s>NOTUSED", 0.0), ("</s>NOTUSED", 0.0), ("<unk>NOTUSED", -100.0)]
            scores = [not_used[0], pad, not_used[1], unknown, not_used[2], *scores[1:], mask]
        return replace(self, scores=scores)


@dataclass(frozen=True)
class UnigramSettings:
    """Settings of `tokenizer_config.json`, with the defaults of transformers."""

    add_prefix_space: bool = True
    """True begins a text with a word, as if a space preceded it."""
    do_lower_case: bool = True
    keep_accents: bool = False


def pieces_of_json(file: Path, class_name: str, content: Mapping[str, Any]) -> Pieces:
    """Returns the pieces of a `tokenizer.json` for a class of transformers.

    Raises:
        InputError: the file has no Unigram model, or its normalization is damaged.
    """
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    try:
        scores = (
            [(str(piece), float(score)) for piece, score in vocabulary]
            if isinstance(vocabulary, list)
            else []
        )
    except (TypeError, ValueError):
        scores = []
    if not scores:
        raise InputError(
            f"{file}: has no pieces with scores, but its class is {class_name}; expected a Unigram model"
        )
    try:
        stated = content.get("normalizer") or {}
        parts = stated["normalizers"] if stated.get("type") == "Sequence" else [stated]
        compiled = [part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled"]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: its normalizer is damaged; expected an object or null") from error
    try:
        return Pieces(scores, base64.b64decode(compiled[0], validate=True) if compiled else None)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{file}: precompiled_charsmap is not base64; expected that of SentencePiece"
        ) from error


def unigram_backend(
    file: Path, class_name: str, pieces: Pieces, unknown_piece: str, settings: UnigramSettings
) -> tokenizers.Tokenizer:
    """Returns the tokenizer that a class of transformers makes of pieces, without added tokens and frame.

    Raises:
        InputError: the piece for unknown text is not where the class expects it, or the library rejects the pieces.
    """
    names = [piece for piece, _ in pieces.scores]
    unknown = {"XLMRobertaTokenizer": 3, "AlbertTokenizer": 1}.get(class_name)
    if unknown is None:
        unknown = names.index(unknown_piece) if unknown_piece in names else 0
    found = names[unknown] if unknown < len(names) else None
    if found != unknown_piece:
        raise InputError(
            f"{file}: id {unknown} is {found!r}: must be {unknown_piece!r}, because {class_name} gives this id to "
            "unknown text"
        )
    with naming_file(file, "a Unigram model"):
        backend = tokenizers.Tokenizer(Unigram(list(pieces.scores), unk_id=unknown, byte_fallback=False))
        if steps := _normalization(class_name, pieces.character_map, settings):
            backend.normalizer = steps[0] if len(steps) == 1 else normalizers.Sequence(steps)
    scheme = "always" if settings.add_prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=WORD_MARK, prepend_scheme=scheme),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=WORD_MARK, prepend_scheme=scheme)
    return backend


def _normalization(class_name: str, character_map: bytes | None, settings: UnigramSettings) -> list[Any]:
    compiled = [normalizers.Precompiled(character_map)] if character_map else []
    if class_name != "AlbertTokenizer":
        return compiled
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.keep_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.do_lower_case:
        steps.append(normalizers.Lowercase())
    return steps + compiled
