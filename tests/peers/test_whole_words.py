"""Whole-word masking compared with the data collator of transformers."""

from pathlib import Path

import jax
import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from scipy import stats

from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.sources import resolve_masking
from mlm_jax.masking.masking import example_keys, mask_tokens
from mlm_jax.text.tokenizer import Tokenizer

pytestmark = pytest.mark.peers

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "emb",
    "##ed",
    "##ding",
    "of",
    "token",
    "##s",
]
TEXT = "the embedding of tokens " * 5
ROWS = 4000


def masked_words(is_masked: np.ndarray, word_of: np.ndarray) -> np.ndarray:
    """Returns which words are masked, bool [rows, words]; checks that all or none of a word's tokens are."""
    first = np.unique(word_of, return_index=True)[1]
    np.testing.assert_array_equal(is_masked, is_masked[:, first][:, word_of])
    return is_masked[:, first]


def test_words_are_masked_as_often_and_as_independently_as_in_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    theirs = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    ours = Tokenizer.load(tmp_path)
    encoded = theirs(TEXT, return_offsets_mapping=True, return_special_tokens_mask=True)
    row = np.array(encoded["input_ids"], np.int32)
    np.testing.assert_array_equal(row[1:-1], ours.encode(TEXT))
    continues = np.array([VOCABULARY[i].startswith("##") for i in row[1:-1]])
    word_of = np.cumsum(~continues) - 1

    collator = transformers.DataCollatorForLanguageModeling(
        theirs,
        whole_word_mask=True,
        mlm_probability=0.2,
        mask_replace_prob=1.0,
        random_replace_prob=0.0,
        seed=0,
    )
    theirs = np.asarray(collator([dict(encoded)] * ROWS)["labels"]) != -100
    recipe = MaskingRecipe(
        unit="whole_word", selection="bernoulli", mask_selection_rate=0.2, mask_selection_length=len(row)
    )
    config = resolve_masking(recipe, ours, len(row))
    out = jax.jit(mask_tokens, static_argnums=2)(
        example_keys(0, 0, np.arange(ROWS)), np.tile(row, (ROWS, 1)), config
    )
    ours_masked = np.zeros((ROWS, len(row)), bool)
    rows, slots = np.nonzero(np.asarray(out.mask_weights))
    ours_masked[rows, np.asarray(out.mask_positions)[rows, slots]] = True

    samples = []
    for is_masked in (theirs, ours_masked):
        assert not is_masked[:, [0, -1]].any()
        samples.append(masked_words(is_masked[:, 1:-1], word_of))
    often = [sample.sum(0) for sample in samples]
    assert stats.chi2_contingency(np.stack(often)).pvalue > 1e-4
    assert stats.chisquare(often[1]).pvalue > 1e-4
    together = [np.bincount(np.minimum(sample.sum(1), 8), minlength=9) for sample in samples]
    assert stats.chi2_contingency(np.stack(together)).pvalue > 1e-4
