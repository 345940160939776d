"""Small tokenizers of every kind, trained on a few sentences."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mlm_jax.text.tokenizer import Tokenizer

TEXTS = [
    "The lakes in Utah aren't deep, they're 1,000 ft; don't say 'it's'!",
    "Straße 東京 naïve café singing 3.14",
] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def byte_level(folder: Path, *, prefix: bool = False, added: tuple[str, ...] = (), **parts: Any) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return loaded(folder, backend, added, **parts)


def unigram(folder: Path, *, scheme: str = "always", added: tuple[str, ...] = (), **parts: Any) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return loaded(folder, backend, added, **parts)


def word_piece(folder: Path, *, added: tuple[str, ...] = (), **parts: Any) -> Tokenizer:
    backend = Tokenizer.train(TEXTS * 3, 160, lowercase=False)._backend
    return loaded(folder, backend, added, **parts)


def characters(folder: Path) -> Tokenizer:
    entries = ["<cls>", "<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "the", "<mask>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(entries))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}')
    return Tokenizer.load(folder)


def loaded(folder: Path, backend: tokenizers.Tokenizer, added: tuple[str, ...], **parts: Any) -> Tokenizer:
    """Loads a backend whose parts, such as the `pre_tokenizer`, are replaced, with added tokens."""
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.add_tokens(list(added))
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(backend.to_str())))
    return Tokenizer.load(folder)
