"""Rows of labeled texts: what a classifier would learn nothing from is reported."""

import warnings

import pytest

from mlm_jax.config import BertConfig
from mlm_jax.use.labeled_batches import labeled_rows
from tests.tiny import GOOD, tiny_tokenizer


def test_unknown_tokens_and_empty_texts_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, config = tiny_tokenizer(), BertConfig(max_sequence_length=40)
    with pytest.warns(UserWarning, match=r"^texts: 80\.0% of the tokens are unknown .* such as '東京'"):
        labeled_rows([("東京", "a joy"), "京都 東京 日本"], config, tokenizer, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labeled_rows([*GOOD, "", ("", "\u200b"), ("", "a joy")], config, tokenizer, None)
    assert capsys.readouterr().err == "2 of 8 texts have no tokens\n"
