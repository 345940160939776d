"""Small tokenizers of each kind."""

from functools import cache

import numpy as np
import tokenizers
from tokenizers.trainers import BpeTrainer

from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.byte_level import frame_texts
from mlm_jax.vocabulary.roles import ROBERTA_ROLES
from mlm_jax.vocabulary.unigram import WORD_MARK
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS, bert_backend

TEXT = [
    "the lake is blue and the sea is green",
    "a glider is a plane; the Glider of the lake",
    "blast and mass, chroma and stigma",
    "some sodium is in the sea (lake salt)",
]
PIECES = [
    "the",
    "lake",
    "is",
    "a",
    "gl",
    "s",
    "##io",
    "##bla",
    "##sto",
    "##ma",
    "##s",
    "sar",
    "##co",
    ",",
    "-",
]
LETTERS = "abcdefghiklmnoprstuz"


def word_piece(*more: str, lowercase: bool = True) -> Tokenizer:
    """Returns a WordPiece tokenizer of `PIECES`, single letters, and `more`."""
    letters = [f"{mark}{letter}" for mark in ("", "##") for letter in LETTERS]
    entries = dict.fromkeys([*SPECIAL_TOKENS, *more, *PIECES, *letters])
    backend = bert_backend({entry: i for i, entry in enumerate(entries)}, lowercase=lowercase)
    return Tokenizer(backend, "test")


@cache
def byte_level() -> Tokenizer:
    """Returns a byte-level BPE tokenizer with RoBERTa's special tokens, trained on `TEXT`."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=310,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 3, trainer=trainer)
    frame_texts(backend, ROBERTA_ROLES)
    return Tokenizer(backend, "test", ROBERTA_ROLES)


@cache
def unigram(*more: str, added: tuple[str, ...] = ()) -> Tokenizer:
    """Returns a Unigram tokenizer of the pieces of `word_piece`, and `more`, with XLM-R's special tokens."""
    texts = [f"{WORD_MARK}{piece}".replace(f"{WORD_MARK}##", "") for piece in (*PIECES, *LETTERS)]
    names = dict.fromkeys(
        [*texts, *(text.removeprefix(WORD_MARK) for text in texts), WORD_MARK, "blas", "mas"]
    )
    random = np.random.default_rng(0)
    # Sums of different pieces differ, and long pieces are better than their letters.
    scores = {name: -8 - 3 * float(random.random()) for name in names}
    first = dict.fromkeys(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 0.0) | dict.fromkeys(more, -99.0)
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([*(first | scores).items()], unk_id=3))
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    )
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens([*first][:5])
    backend.add_tokens([*added])
    return Tokenizer(backend, "test", ROBERTA_ROLES)


def pieces(tokenizer: Tokenizer, text: str) -> list[str | None]:
    return [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text)]
