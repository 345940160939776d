"""Data in which nothing can be masked are rejected before the first step."""

from typing import Any

import numpy as np
import pytest

from mlm_jax.config import DataConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.batches import Rows
from mlm_jax.data.sources import resolve_masking
from mlm_jax.errors import InputError
from mlm_jax.shards.token_store import TokenStore
from mlm_jax.step import maskable
from mlm_jax.step.maskable import check_maskable, unknown_share
from mlm_jax.text.tokenizer import Tokenizer

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "lake", "river"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(VOCABULARY))
    return Tokenizer.load(file)


def rows_of(documents: list[str], tokenizer: Tokenizer, length: int = 16, packing: Any = "packed") -> Rows:
    config = DataConfig(sequence_length=length, packing=packing)
    return Rows(TokenStore.from_documents(documents, tokenizer), tokenizer, config)


def check(rows: Rows, **recipe: Any) -> None:
    masking = resolve_masking(MaskingRecipe(**recipe), rows.tokenizer, rows.sequence_length)
    check_maskable(rows, masking, "data.path")


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_unknown_tokens_alone_are_rejected(tokenizer: Tokenizer, packing: str, unit: str) -> None:
    rows = rows_of(["ACGT GTCA"] * 40, tokenizer, packing=packing)
    with pytest.raises(
        InputError, match=r"^data\.path: no token can be masked: its \d+ rows have only special"
    ):
        check(rows, unit=unit)
    assert unknown_share(rows) == 1.0


def test_a_single_token_at_the_end_is_enough(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskable, "_ROWS", 4)
    for unit in ("token", "whole_word", "span"):
        check(rows_of([*["ACGT GTCA"] * 100, "lake"], tokenizer), unit=unit)


def test_most_data_are_accepted_after_a_few_rows(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, read = rows_of(["a lake"] * 20_000, tokenizer), []
    read_rows = rows.read
    monkeypatch.setattr(rows, "read", lambda numbers: read.extend(numbers) or read_rows(numbers))
    check(rows)
    assert len(read) <= 256 < rows.num_rows


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_words_that_all_exceed_the_budget_are_rejected(tokenizer: Tokenizer, unit: str) -> None:
    """A text without spaces is one word of many pieces, and no row may mask all of it."""
    rows = rows_of(["a" * 90] * 20, tokenizer, packing="document")
    with pytest.raises(InputError, match=rf"no word is short enough to be masked: masking.unit = '{unit}'"):
        check(rows, unit=unit)
    check(rows, unit="token")
    check(rows, unit=unit, mask_selection_rate=1.0)
    check(rows_of([*["a" * 90] * 20, "lake"], tokenizer, packing="document"), unit=unit)


@pytest.mark.parametrize("quota", ["row", "document"])
@pytest.mark.parametrize("selection", ["ceil", "bert"])
def test_the_shortest_rows_have_something_to_mask(tokenizer: Tokenizer, quota: Any, selection: Any) -> None:
    check(rows_of(["a lake", "a river"], tokenizer, length=3), quota=quota, selection=selection)


def test_the_share_of_unknown_tokens(tokenizer: Tokenizer) -> None:
    """Special tokens and padding do not count."""
    assert unknown_share(rows_of(["a lake ACGT river"] * 10, tokenizer, packing="document")) == 0.25
    assert unknown_share(rows_of(["a lake"], tokenizer)) == 0.0
    assert np.isclose(unknown_share(rows_of(["aaa ACGT"] * 10, tokenizer)), 0.25)
