"""New words become entries that text is read with, in the place of unused entries first."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.extension.kinds import kind_of
from mlm_jax.extension.new_words import extend, extend_with_costly
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary import wordpiece
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS
from tests.extension.tokenizers_small import TEXT, byte_level, pieces, unigram, word_piece


def test_a_word_of_word_piece_is_what_the_normalizer_yields() -> None:
    old = word_piece()
    assert pieces(old, "Glioblastoma, sarcomas") == [
        "gl",
        "##io",
        "##bla",
        "##sto",
        "##ma",
        ",",
        "sar",
        "##co",
        "##ma",
        "##s",
    ]
    extended, notes = extend("list", old, ["GLIOBLASTOMA", "Sárcoma"])
    new = extended.tokenizer
    assert notes == []
    assert pieces(new, "Glioblastoma, sarcomas") == ["glioblastoma", ",", "sarcoma", "##s"]
    assert extended.token_ids == {"glioblastoma": old.vocabulary_size, "sarcoma": old.vocabulary_size + 1}
    assert new.vocabulary_size == old.vocabulary_size + 2
    assert pieces(new, "the lake, massa") == pieces(old, "the lake, massa")


def test_a_cased_tokenizer_gets_the_word_as_it_is() -> None:
    old = word_piece("G", "S", "Sar", lowercase=False)
    new = extend("list", old, ["Sarcoma"])[0].tokenizer
    assert pieces(new, "Sarcoma sarcoma") == ["Sarcoma", "sar", "##co", "##ma"]


def test_unused_entries_are_taken_first() -> None:
    old = word_piece("[unused0]", "[unused1]", "[unused12a]")
    ids = [old.token_to_id(f"[unused{i}]") for i in range(2)]
    extended, _ = extend("list", old, ["glioma", "sarcoma", "lakes"])
    assert [*extended.token_ids.values()] == [*ids, old.vocabulary_size]
    assert extended.num_reused == 2
    assert extended.tokenizer.token_to_id("[unused0]") is None
    assert extended.tokenizer.token_to_id("[unused12a]") == old.token_to_id("[unused12a]")
    assert extended.tokenizer.encode("glioma sarcoma lakes").tolist() == [*ids, old.vocabulary_size]
    entries = old.backend.get_vocab()
    kept = {entry: i for entry, i in entries.items() if i not in ids}
    assert kept.items() <= extended.tokenizer.backend.get_vocab().items()


def test_an_unused_entry_that_is_an_added_token_is_not_taken() -> None:
    old = word_piece("[unused0]", "[unused1]")
    old.backend.add_tokens(["[unused0]"])
    old = Tokenizer(old.backend, "test")
    extended, _ = extend("list", old, ["glioma", "sarcoma"])
    assert [*extended.token_ids.values()] == [old.token_to_id("[unused1]"), old.vocabulary_size]
    assert pieces(extended.tokenizer, "[unused0] glioma") == ["[unused0]", "glioma"]


def test_tokens_that_a_user_added_keep_their_ids() -> None:
    old = word_piece()
    old.backend.add_tokens(["[E1]"])
    old = Tokenizer(old.backend, "test")
    assert old.token_to_id("[E1]") == old.vocabulary_size - 1
    extended, notes = extend("list", old, ["glioma", "[E1]", "x[E1]"])
    assert extended.tokenizer.encode("[E1] glioma").tolist() == [old.token_to_id("[E1]"), old.vocabulary_size]
    assert extended.tokenizer.token_to_id("[E1]") == old.token_to_id("[E1]")
    assert notes[0] == "left out 2 that are not one word to this tokenizer, such as '[E1]' ([ e1 ])"


def test_what_is_left_out_is_said() -> None:
    listed = ["glioma", "Lake", "GLIOMA", "covid-19", "new lake", "##ma", "\u200d", "x" * 101]
    extended, notes = extend("list", word_piece(), listed)
    assert [*extended.token_ids] == ["glioma"]
    assert notes == [
        "left out 1 that are entries already, such as 'Lake'",
        "left out 1 that repeat another, such as 'GLIOMA'",
        "left out 4 that are not one word to this tokenizer, such as 'covid-19' (covid - 19)",
        f"left out 1 that this tokenizer would never find, such as {'x' * 101!r}",
    ]


def test_a_list_without_a_new_word_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^words\.txt: has no new word: left out 2 that are entries already"
    ):
        extend("words.txt", word_piece(), ["lake", "the"])


def test_ids_beyond_what_models_support_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = word_piece()
    monkeypatch.setattr(wordpiece, "LARGEST_VOCABULARY", old.vocabulary_size + 1)
    extend("list", old, ["glioma"])
    with pytest.raises(InputError, match=r"^list: 'sarcoma' has the id .*: must be below"):
        extend("list", old, ["glioma", "sarcoma"])


def test_byte_level_words_follow_a_space_and_change_no_other() -> None:
    old = byte_level()
    extended, notes = extend("list", old, ["glioblastoma", "Sárcoma"])
    new = extended.tokenizer
    assert notes == []
    assert [*extended.token_ids] == ["Ġglioblastoma", "ĠSÃ¡rcoma"]
    ids = [*extended.token_ids.values()]
    assert new.encode(" glioblastoma Sárcoma").tolist() == ids
    assert new.encode("a glioblastoma.").tolist() == [*old.encode("a"), ids[0], *old.encode(".")]
    others = [
        *TEXT,
        "glioblastoma",
        " glioblast",
        " glioblastomas",
        " Glioblastoma",
        " sarcoma  x\n\tglio",
        "ü ß",
    ]
    for text in others:
        assert new.encode(text).tolist() == old.encode(text).tolist()
    assert new.decode(ids) == " glioblastoma Sárcoma"
    assert new.frame == old.frame


def test_byte_level_words_are_found_again_in_a_saved_folder(tmp_path: Path) -> None:
    new = extend("list", byte_level(), ["glioblastoma"])[0].tokenizer
    new.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == new.fingerprint != byte_level().fingerprint
    assert again.encode(" glioblastoma").size == 1


def test_word_piece_words_are_found_again_in_a_saved_folder(tmp_path: Path) -> None:
    new = extend("list", word_piece("[unused0]"), ["glioblastoma", "sarcoma"])[0].tokenizer
    new.save(tmp_path)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        again = Tokenizer.load(path)
        assert again.fingerprint == new.fingerprint
        assert again.encode("glioblastoma sarcoma").size == 2


def random_texts() -> list[str]:
    random = np.random.default_rng(0)
    parts = [
        *("gl", "io", "bla", "blas", "sto", "ma", "mas", "s", "co", ",", "é", "("),
        *(" gl", " glio", " sar"),
    ]
    parts += ["glioma", "sarcoma", " the", "lake"]
    return ["".join(random.choice(parts, 40)) for _ in range(300)]


def test_a_word_of_unigram_stands_where_its_pieces_stood() -> None:
    old = unigram()
    listed = ["glioma", "Glioma", "glio", "glioblastoma", "sarcoma", "thelake"]
    extended, notes = extend("list", old, listed)
    new, ids = extended.tokenizer, extended.token_ids
    assert notes == []
    assert pieces(old, "glioblastoma, glioma") != pieces(new, "glioblastoma, glioma")
    assert pieces(new, "glioblastoma, glioma") == ["▁glioblastoma", ",", "▁glioma"]
    # Of two new words that a text begins with, the one that leaves fewer tokens wins.
    assert pieces(new, "gliomas")[0] in ("▁glioma", "▁glio")
    joined = {i: [token.id for token in old.backend.model.tokenize(word)] for word, i in ids.items()}
    found = set()
    for text, before, after in zip(
        random_texts(), old.encode_batch(random_texts()), new.encode_batch(random_texts()), strict=True
    ):
        assert [piece for i in after.tolist() for piece in joined.get(i, [i])] == before.tolist(), text
        found.update(after.tolist())
    assert len(found & set(ids.values())) >= 4


def test_of_new_words_at_a_beginning_the_longest_wins() -> None:
    old = unigram()
    assert pieces(old, "glioblat") == [*pieces(old, "glio"), "bla", "t"]
    new = extend("list", old, ["gliobla", "glio"])[0].tokenizer
    assert pieces(new, "glioblat") == ["▁gliobla", "t"]
    # By more than rounding.
    scores = dict(json.loads(new.backend.to_str())["model"]["vocab"])
    assert scores["▁gliobla"] - scores["▁glio"] - scores["bla"] == pytest.approx(1e-4, rel=1e-3)


def test_a_word_of_unigram_may_have_unknown_characters() -> None:
    old = unigram()
    new = extend("list", old, ["masé", "ωμέγα"])[0].tokenizer
    assert pieces(old, "masé ωμέγα é") == ["▁", "mas", "<unk>", "▁", "<unk>", "▁", "<unk>"]
    assert pieces(new, "masé ωμέγα é") == ["▁masé", "▁ωμέγα", "▁", "<unk>"]


def test_unigram_words_are_found_again_in_a_saved_folder(tmp_path: Path) -> None:
    new = extend("list", unigram(), ["glioblastoma", "sarcoma"])[0].tokenizer
    new.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == new.fingerprint != unigram().fingerprint
    assert again.decode(again.encode("a glioblastoma")) == "a glioblastoma"
    assert again.encode("glioblastoma sarcoma").size == 2
    assert again.continues_word.sum() == unigram().continues_word.sum()


def test_unigram_takes_unused_entries_first_and_keeps_added_tokens() -> None:
    old = unigram("[unused0]▁", "<unused1>", added=("[E1]",))
    assert old.token_to_id("[E1]") == old.vocabulary_size - 1
    extended, _ = extend("list", old, ["sarcoma", "glioma", "lakes"])
    new = extended.tokenizer
    assert [*extended.token_ids.values()] == [
        *(old.token_to_id(entry) for entry in ("[unused0]▁", "<unused1>")),
        old.vocabulary_size,
    ]
    assert pieces(new, "[E1]sarcoma lakes") == ["[E1]", "▁sarcoma", "▁lakes"]
    assert new.token_to_id("[E1]") == old.token_to_id("[E1]")


def test_a_special_token_is_no_word() -> None:
    extended, notes = extend("list", unigram(added=("[E1]",)), ["glioma", "<mask>", "x<mask>", "[E1]"])
    assert [*extended.token_ids] == ["▁glioma"]
    assert notes == ["left out 3 that this tokenizer would never find, such as '▁<mask>'"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            tokenizers.models.Unigram([(name, 0.0) for name in SPECIAL_TOKENS], 1),
            "Unigram without marks of words",
        ),
        (tokenizers.models.BPE({name: i for i, name in enumerate(SPECIAL_TOKENS)}, []), "BPE"),
        (
            tokenizers.models.WordLevel({name: i for i, name in enumerate(SPECIAL_TOKENS)}, "[UNK]"),
            "WordLevel, of whole words, characters or k-mers",
        ),
    ],
)
def test_other_kinds_are_refused(model: tokenizers.models.Model, message: str) -> None:
    old = Tokenizer(tokenizers.Tokenizer(model), "test")
    with pytest.raises(
        InputError,
        match=f"the model's tokenizer is {message}: must be WordPiece, byte-level BPE or Unigram for new entries",
    ):
        extend("list", old, ["glioma"])


def test_words_of_a_text_may_lack() -> None:
    old = word_piece()
    kind = kind_of(old)
    assert [*extend_with_costly("text", old, kind, ["glioma", "sarcoma"], 1).token_ids] == ["glioma"]
    with pytest.raises(InputError, match="text: has no word that is frequent enough and divided"):
        extend_with_costly("text", old, kind, [], 5)


def test_entries_that_merges_never_reach_are_told(recwarn: pytest.WarningsRecorder) -> None:
    content = json.loads(byte_level().backend.to_str())
    content["model"]["vocab"] |= {
        "Ġsodalite": byte_level().vocabulary_size,
        "<|x|>": byte_level().vocabulary_size + 1,
    }
    old = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), "test", byte_level().roles)
    assert old.encode(" sodalite").size > 1
    extended, _ = extend("list", old, ["glioma"])
    assert [str(warning.message) for warning in recwarn] == [
        "1 of the tokenizer's entries, such as 'Ġsodalite', could not be found in text for want of merges; with new "
        "words, they are found"
    ]
    assert extended.tokenizer.encode(" sodalite").tolist() == [old.token_to_id("Ġsodalite")]
    extend("list", extended.tokenizer, ["sarcoma"])
    assert len(recwarn) == 1
