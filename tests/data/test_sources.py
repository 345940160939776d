"""Requirements of a run's settings on its training and evaluation data."""

from dataclasses import replace
from typing import Any

import pytest
import tokenizers

from mlm_jax.config import DataConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.prepare import prepare
from mlm_jax.data.sources import open_run_data, resolve_masking
from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS
from tests.run_small import documents, prepared, tokenizer


@pytest.mark.parametrize("name", ["path", "eval_path"])
def test_attending_within_documents_needs_separators(tmp_path, name: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(documents()[:200]))
    prepare([str(text)], tokenizer(), str(tmp_path / "data"), separator="none")
    data = DataConfig(path=str(prepared()), eval_path=str(prepared()), sequence_length=20)
    data = replace(data, **{name: str(tmp_path / "data")})
    assert open_run_data(data).evaluation is not None
    within = replace(data, attend_within_documents=True)
    with pytest.raises(
        InputError, match=rf"the documents of data\.{name} have no \[SEP\] .* --separator sep"
    ):
        open_run_data(within)
    assert open_run_data(replace(within, **{name: str(prepared())})).train.num_rows > 0


def test_the_order_belongs_to_a_run() -> None:
    """Earlier versions had only the global one, and did not save it."""
    config = DataConfig(path=str(prepared()), sequence_length=20)
    sources = open_run_data(config)
    before = sources.description(config)
    after = sources.description(replace(config, order="windowed"))
    assert "order" not in before["data"]
    assert after["data"].pop("order") == "windowed"
    assert after == before


def test_evaluation_may_use_another_packing() -> None:
    def rows_of(**changes: Any) -> tuple[int, int]:
        config = DataConfig(path=str(prepared()), eval_path=str(prepared()), sequence_length=20, **changes)
        sources = open_run_data(config)
        assert sources.evaluation is not None
        return sources.train.num_rows, sources.evaluation.num_rows

    packed, documents = rows_of()[0], rows_of(packing="document")[0]
    assert packed != documents
    assert rows_of(eval_packing="document") == (packed, documents)
    assert rows_of(packing="document", eval_packing="packed") == (documents, packed)
    assert rows_of(eval_packing="document", attend_within_documents=True) == (packed, documents)


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_words_are_told_by_ids_or_by_the_data(tmp_path, unit: str) -> None:
    recipe = MaskingRecipe(unit=unit)
    ours = resolve_masking(recipe, tokenizer(), 16)
    assert ours.continuation_token_ids
    assert not ours.words_from_data
    entries = {entry: number for number, entry in enumerate([*SPECIAL_TOKENS, "a", "b"])}
    models = tokenizers.models
    known = {
        "WordLevel": models.WordLevel(entries, "[UNK]"),
        "BPE": models.BPE(entries, []),
        "Unigram": models.Unigram([(entry, -1.0) for entry in entries], 1, False),
        "WordPiece": models.WordPiece(entries, unk_token="[UNK]", continuing_subword_prefix="@@"),
    }
    for name, model in known.items():
        tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        resolved = resolve_masking(recipe, Tokenizer.load(tmp_path), 16)
        assert resolved.continuation_token_ids == ()
        assert resolved.words_from_data == (name != "WordLevel")
        assert not resolve_masking(MaskingRecipe(), Tokenizer.load(tmp_path), 16).words_from_data
