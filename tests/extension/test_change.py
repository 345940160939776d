"""Changes of a model's vocabulary, and what a user is told about them."""

from mlm_jax.extension.change import add_words, move
from mlm_jax.extension.word_counts import count_chunks
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS, bert_backend
from tests.extension.test_rows import model_of
from tests.extension.tokenizers_small import byte_level, word_piece


def test_words_that_become_unknown_are_told() -> None:
    entries = [*SPECIAL_TOKENS, "gl", "##obtos", "##o", "##b"]
    backend = bert_backend({entry: i for i, entry in enumerate(entries)}, lowercase=True)
    model = model_of(Tokenizer(backend, "test"))
    # "##tos" has no pieces once the longest entry at the beginning is "glob".
    change = add_words("list", model, ["glob"], count_chunks(["globtos glob"] * 3))
    assert change.notes == ["3 tokens of the text are unknown, 0 before"]
    assert add_words("list", model, ["glob"], count_chunks(["glob"])).notes == []
    lakes = count_chunks(["the lake", "lake"])
    assert move("other", model_of(word_piece()), Tokenizer(backend, "test"), lakes).notes == [
        "3 tokens of the text are unknown, 0 before"
    ]


def test_a_moved_model_counts_positions_from_the_new_padding() -> None:
    model = model_of(byte_level(), position_offset=byte_level().pad_token_id + 1)
    moved = move("other", model, word_piece()).model
    assert moved.config.position_offset == word_piece().pad_token_id + 1
    assert moved.config.vocabulary_size == word_piece().vocabulary_size


def test_a_moved_model_knows_the_id_of_the_mask() -> None:
    old = word_piece()
    model = model_of(old, mask_dropout_id=old.mask_token_id)
    backend = bert_backend({entry: i for i, entry in enumerate(["a", *SPECIAL_TOKENS])}, lowercase=True)
    new = Tokenizer(backend, "test")
    assert new.mask_token_id != old.mask_token_id
    assert move("other", model, new).model.config.mask_dropout_id == new.mask_token_id
    assert add_words("list", model, ["sarcoma"]).model.config.mask_dropout_id == old.mask_token_id
    assert move("other", model_of(old), new).model.config.mask_dropout_id is None
