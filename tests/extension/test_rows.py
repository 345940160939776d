"""Rows and biases of new entries."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config import BertConfig
from mlm_jax.extension.new_words import extend
from mlm_jax.extension.origins import Origins, origins_of_tokenizer, origins_of_words
from mlm_jax.extension.rows import TokenCounts, with_padding_of, with_vocabulary
from mlm_jax.formats.model_folder import StoredModel, flatten_params, nest_params, random_model
from mlm_jax.text.tokenizer import Tokenizer
from tests.extension.tokenizers_small import byte_level, unigram, word_piece

TOKEN, BIAS, OUTPUT = "encoder/embeddings/token", "head/bias", "head/output"


def model_of(tokenizer: Tokenizer, **settings: object) -> StoredModel:
    config = BertConfig(
        **{
            "vocabulary_size": tokenizer.vocabulary_size,
            "num_layers": 1,
            "hidden_dim": 8,
            "num_heads": 2,
            "intermediate_dim": 8,
            "max_sequence_length": 16,
        }
        | settings
    )
    model = random_model(config, tokenizer, 0)
    flat = flatten_params(model.params)
    flat[BIAS] = np.random.default_rng(1).normal(size=flat[BIAS].shape).astype(np.float32)
    return replace(model, params=nest_params(flat))


def leaves(model: StoredModel) -> dict[str, np.ndarray]:
    return flatten_params(model.params)


@pytest.mark.parametrize("narrow", [None, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_of_those_of_its_pieces(tied: bool, narrow: int | None) -> None:
    old = word_piece()
    model = model_of(old, tie_embeddings=tied, embedding_dim=narrow)
    extended, _ = extend("list", old, ["sarcoma", "glioma"])
    changed = with_vocabulary(model, extended.tokenizer, origins_of_words(old, extended, old.vocabulary_size))
    assert changed.config.vocabulary_size == extended.tokenizer.vocabulary_size == old.vocabulary_size + 2
    assert changed.tokenizer is extended.tokenizer
    before, after = leaves(model), leaves(changed)
    assert before.keys() == after.keys()
    for path in (TOKEN, *([] if tied else [OUTPUT])):
        assert after[path].dtype == np.float32
        np.testing.assert_array_equal(after[path][:-2], before[path])
        for word, row in extended.token_ids.items():
            expected = before[path][old.encode(word)].mean(axis=0)
            np.testing.assert_allclose(after[path][row], expected, rtol=1e-6)
    for path in before.keys() - {TOKEN, OUTPUT, BIAS}:
        assert after[path] is before[path]


def test_the_bias_follows_from_the_counts() -> None:
    old = word_piece()
    model = model_of(old)
    extended, _ = extend("list", old, ["sarcoma", "glioma"])
    origins = origins_of_words(old, extended, old.vocabulary_size)
    random = np.random.default_rng(0)
    counts = TokenCounts(
        random.integers(0, 99, old.vocabulary_size), random.integers(0, 99, old.vocabulary_size + 2)
    )
    before = leaves(model)[BIAS]
    after = leaves(with_vocabulary(model, extended.tokenizer, origins, counts))[BIAS]
    np.testing.assert_array_equal(after[:-2], before)
    for word, row in extended.token_ids.items():
        pieces = old.encode(word)
        expected = np.mean(before[pieces] - np.log(counts.old[pieces] + 1)) + np.log(counts.new[row] + 1)
        assert after[row] == pytest.approx(expected, rel=1e-5)
    alone = leaves(with_vocabulary(model, extended.tokenizer, origins))[BIAS]
    for word, row in extended.token_ids.items():
        assert alone[row] == before[old.encode(word)].min()


def test_a_word_with_the_frequency_of_its_pieces_has_their_mean_bias() -> None:
    old = word_piece()
    extended, _ = extend("list", old, ["sarcoma"])
    counts = TokenCounts(np.full(old.vocabulary_size, 7), np.full(old.vocabulary_size + 1, 7))
    model = model_of(old)
    origins = origins_of_words(old, extended, old.vocabulary_size)
    after = leaves(with_vocabulary(model, extended.tokenizer, origins, counts))[BIAS]
    assert after[-1] == pytest.approx(leaves(model)[BIAS][old.encode("sarcoma")].mean(), rel=1e-5)


def test_a_word_without_a_known_piece_is_the_mean_of_all_entries() -> None:
    old = word_piece()
    model = model_of(old, vocabulary_size=old.vocabulary_size + 3)
    extended, _ = extend("list", old, ["ωμέγα"])
    origins = origins_of_words(old, extended, model.config.vocabulary_size)
    assert [*origins.made.values()] == [()]
    before, after = leaves(model), leaves(with_vocabulary(model, extended.tokenizer, origins))
    row, entries = old.vocabulary_size, slice(old.vocabulary_size)
    np.testing.assert_allclose(after[TOKEN][row], before[TOKEN][entries].mean(axis=0), atol=1e-7)
    assert after[BIAS][row] == before[BIAS][entries].min()


def test_spare_rows_are_used_before_the_table_grows() -> None:
    old = word_piece()
    model = model_of(old, vocabulary_size=old.vocabulary_size + 2)
    for words, rows in ((["sarcoma"], 2), (["sarcoma", "glioma", "lakes"], 3)):
        extended, _ = extend("list", old, words)
        origins = origins_of_words(old, extended, model.config.vocabulary_size)
        changed = with_vocabulary(model, extended.tokenizer, origins)
        assert changed.config.vocabulary_size == old.vocabulary_size + rows
        expected = leaves(model)[TOKEN][old.encode("sarcoma")].mean(axis=0)
        np.testing.assert_allclose(leaves(changed)[TOKEN][old.vocabulary_size], expected, rtol=1e-6)


def test_an_encoder_alone_has_no_bias_and_the_dtype_is_kept() -> None:
    old = word_piece()
    model = model_of(old)
    encoder = nest_params(
        {
            k: np.asarray(jnp.asarray(v, jnp.bfloat16))
            for k, v in leaves(model).items()
            if k.startswith("encoder")
        }
    )
    extended, _ = extend("list", old, ["sarcoma"])
    changed = with_vocabulary(
        replace(model, params=encoder),
        extended.tokenizer,
        origins_of_words(old, extended, old.vocabulary_size),
    )
    assert [*changed.params] == ["encoder"]
    table = leaves(changed)[TOKEN]
    assert table.dtype == jnp.bfloat16
    expected = table[old.encode("sarcoma")].astype(np.float32).mean(axis=0).astype(table.dtype)
    np.testing.assert_array_equal(table[-1], expected)


def kept_and_made(old: Tokenizer, new: Tokenizer) -> tuple[dict[str, str], dict[str, list[str]], Origins]:
    origins = origins_of_tokenizer("new", old, new)
    names = {i: entry for entry, i in new.backend.get_vocab().items()}
    kept = {names[i]: str(old.id_to_token(int(row))) for i, row in enumerate(origins.kept) if row >= 0}
    made = {names[i]: [str(old.id_to_token(row)) for row in rows] for i, rows in origins.made.items()}
    assert kept.keys() | made.keys() == set(new.backend.get_vocab())
    return kept, made, origins


def test_entries_that_both_tokenizers_have_are_kept() -> None:
    old, new = word_piece(), word_piece("sarcoma", "##coma", "Lake", "##lake", "ωμέγα", "[E1]", "green")
    kept, made, _ = kept_and_made(old, new)
    assert all(theirs == ours for ours, theirs in kept.items())
    assert kept.keys() == old.backend.get_vocab().keys()
    assert made == {
        "sarcoma": ["sar", "##co", "##ma"],
        "##coma": ["##co", "##ma"],
        "Lake": ["lake"],
        "##lake": ["##l", "##a", "##k", "##e"],
        "ωμέγα": [],
        "[E1]": [],
        "green": ["g", "##r", "##e", "##e", "##n"],
    }


def test_words_are_kept_between_kinds_where_they_stand_in_the_same_place() -> None:
    kept, made, _ = kept_and_made(word_piece("la"), byte_level())
    assert {**kept, "<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]", "<unk>": "[UNK]"} == kept
    assert (kept["<mask>"], kept["Ġthe"], kept["Ġlake"], kept["s"]) == ("[MASK]", "the", "lake", "##s")
    assert made["Ã"] == []
    assert made["Ġsea"] == ["s", "##e", "##a"]
    assert (kept[","], made["G"], made["ea"], made["1"]) == (",", ["g"], ["##e", "##a"], [])
    kept, made, _ = kept_and_made(byte_level(), word_piece("lakes", "##,", "中"))
    assert (kept[","], made["##,"], made["中"]) == (",", [], ["ä", "¸", "Ń"])
    assert made["lakes"] == ["Ġlake", "s"]
    assert (kept["[MASK]"], kept["the"], kept["lake"], kept["##s"]) == ("<mask>", "Ġthe", "Ġlake", "s")
    assert made["##sto"] == [str(byte_level().id_to_token(int(i))) for i in byte_level().encode("sto")]


def test_punctuation_is_the_same_within_a_word() -> None:
    old = word_piece("##,", "x-")
    kept, made, _ = kept_and_made(old, byte_level())
    assert kept[","] == ","
    assert made["Ġ("] == []
    _, made, _ = kept_and_made(old, word_piece("e-s", "##a,s", ""))
    assert made == {"e-s": ["##e", "-", "s"], "##a,s": [], "": []}


def test_a_text_without_pieces_within_a_word_may_be_a_word() -> None:
    _, made, _ = kept_and_made(word_piece("ωα"), word_piece("##ωα"))
    assert made == {"##ωα": ["ωα"]}


def test_parts_of_characters_are_kept_by_their_bytes() -> None:
    old = byte_level()
    new = extend("list", old, ["glioma"])[0].tokenizer
    origins = origins_of_tokenizer("new", old, new)
    np.testing.assert_array_equal(origins.kept, [*range(old.vocabulary_size), -1])
    assert [*origins.made] == [old.vocabulary_size]


def test_an_unused_entry_has_no_pieces() -> None:
    _, made, _ = kept_and_made(word_piece("[", "]"), word_piece("[unuse]", "[unused2]", "x[unused1]"))
    assert made["[unused2]"] == []
    assert made["[unuse]"] == ["[", "u", "##n", "##u", "##s", "##e", "]"]


def test_positions_count_from_the_padding_of_the_tokenizer() -> None:
    old, new = byte_level(), word_piece()
    model = model_of(old, position_offset=old.pad_token_id + 1)
    moved = with_padding_of(new, model)
    assert (moved.config.position_offset, new.pad_token_id) == (1, 0)
    path = "encoder/embeddings/position"
    before, after = leaves(model)[path], leaves(moved)[path]
    np.testing.assert_array_equal(after[1:], before[model.config.position_offset :])
    np.testing.assert_array_equal(leaves(with_padding_of(old, moved))[path][-16:], after[-16:])
    assert with_padding_of(old, model) is model
    plain = model_of(old)
    assert with_padding_of(new, plain) is plain


def test_words_of_unigram_are_kept_where_they_stand_in_the_same_place() -> None:
    kept, made, _ = kept_and_made(word_piece("la"), unigram("[unused0]▁"))
    assert (kept["<mask>"], kept["<s>"], kept["▁lake"], kept["▁s"], kept["s"], kept["ma"]) == (
        *("[MASK]", "[CLS]", "lake", "s", "##s", "##ma"),
    )
    # Of a comma after a space, the comma; the mark alone and what is unused have no text.
    assert (kept[","], made["▁,"], made["blas"]) == (",", [","], ["##bla", "##s"])
    assert made["▁"] == made["[unused0]▁"] == []
    kept, made, _ = kept_and_made(unigram(), word_piece("la", "sarcoma", "##blas"))
    assert (kept["[MASK]"], kept["lake"], kept["##s"], kept["##blas"]) == ("<mask>", "▁lake", "s", "blas")
    assert made["sarcoma"] == [unigram().id_to_token(int(i)) for i in unigram().encode("sarcoma")]
    kept, made, _ = kept_and_made(unigram(), byte_level())
    assert (kept["Ġthe"], kept["Ġlake"], kept["s"]) == ("▁the", "▁lake", "s")
    kept, made, _ = kept_and_made(byte_level(), unigram())
    assert (kept["▁the"], kept["s"]) == ("Ġthe", "s")
