"""WordPiece follows BERT's rules, all ways of encoding agree, and training is deterministic."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
import warnings
from functools import partial

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.errors import InputError
from mlm_jax.text import word_cache
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary import wordpiece
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS

PIECES = ["hello", "world", "un", "##aff", "##able", "uber", "resume", "mask", "中", "国", "##国"]
PIECES += ["a", "b", "c", "e", "i", "s", "1", "##a", "##b", "##c", "##d", "##e", "##i", "##s", *",.![]|-"]
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
# Covers every rule of the normalizer: accents, kinds of space, control characters.
ALPHABET = "abceisuABÉéüİß中国 ,.![]|-1\t\n\r\x0b\x00\x85\u00a0\u0301\u200d\u2028\u3000\ufffd"


def load(tmp_path, vocabulary=VOCABULARY, **options) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("".join(f"{entry}\n" for entry in vocabulary), encoding="utf-8")
    return Tokenizer.load(tmp_path / "vocab.txt", **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return load(tmp_path_factory.mktemp("vocabulary"))


def pieces(tokenizer: Tokenizer, text: str, **options) -> list[str | None]:
    return [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text, **options)]


def bert_reference(text: str, vocabulary: list[str], *, lowercase: bool) -> list[str]:
    """A direct transcription of the rules of google-research/bert `tokenization.py`."""
    kept = (
        c
        for c in text
        if c in "\t\n\r" or (c not in "\0\ufffd" and unicodedata.category(c) not in ("Cc", "Cf"))
    )
    spaced = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in kept)
    words: list[str] = []
    for word in spaced.split():
        if lowercase:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")  # noqa: PLW2901
        current = ""
        for c in word:
            if (c.isascii() and not c.isalnum() and c.isprintable()) or unicodedata.category(c).startswith(
                "P"
            ):
                words += [current, c]
                current = ""
            else:
                current += c
        words.append(current)
    return [piece for word in words if word for piece in _longest_first(word, vocabulary)]


def _longest_first(word: str, vocabulary: list[str]) -> list[str]:
    found: list[str] = []
    start = 0
    while start < len(word):
        candidates = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
        piece = next((candidate for candidate in candidates if candidate in vocabulary), None)
        if piece is None:
            return ["[UNK]"]
        found.append(piece)
        start += len(piece.removeprefix("##") if start else piece)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, WORLD!", ["hello", ",", "world", "!"]),
        ("unaffable", ["un", "##aff", "##able"]),
        ("Über résumé", ["uber", "resume"]),
        ("re\u0301sume\u0301", ["resume"]),
        ("中国a", ["中", "国", "a"]),
        ("ab\u200dc ab\x00c", ["a", "##b", "##c", "a", "##b", "##c"]),
        ("a\tb\nc\u00a0a\u3000b", ["a", "b", "c", "a", "b"]),
        ("a\x0bb", ["a", "##b"]),
        ("xyz a", ["[UNK]", "a"]),
        ("a" * 101, ["[UNK]"]),
        ("a" * 100, ["a"] + ["##a"] * 99),
        ("[MASK] a", ["[", "mask", "]", "a"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_bert_rules_on_examples(tokenizer, text, expected):
    assert pieces(tokenizer, text) == expected


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_rules_match_the_reference(tmp_path_factory, lowercase):
    tokenizer = load(
        tmp_path_factory.mktemp("vocabulary"), [*VOCABULARY, "A", "##B", "é"], lowercase=lowercase
    )

    @given(st.text(ALPHABET))
    def check(text):
        assert pieces(tokenizer, text) == bert_reference(
            text, [*VOCABULARY, "A", "##B", "é"], lowercase=lowercase
        )

    check()


@given(texts=st.lists(st.one_of(st.text(), st.text(ALPHABET))))
def test_word_cache_matches_the_library(tokenizer, texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    library = tokenizer._backend.encode_batch(texts, add_special_tokens=False)
    for ids, encoding in zip(tokenizer.encode_batch(texts), library, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == encoding.ids


def test_word_cache_is_cleared_and_shared_by_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(word_cache, "_KNOWN_SIZE_LIMIT", 2000)
    monkeypatch.setattr(word_cache, "_PIECE_CHARACTERS", 64)
    tokenizer = load(tmp_path)
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abceis"), 6)) for _ in range(200)) for _ in range(50)]
    expected = [encoding.ids for encoding in tokenizer._backend.encode_batch(texts, add_special_tokens=False)]
    results: dict[int, list] = {}

    def encode(thread: int) -> None:
        results[thread] = [tokenizer.encode(text).tolist() for text in texts]

    threads = [threading.Thread(target=encode, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[thread] == expected for thread in range(4))
    assert tokenizer._word_cache._known_size < 2000 + 4 * 200 * 30


def test_long_text_without_a_space(tokenizer, monkeypatch):
    monkeypatch.setattr(word_cache, "_PIECE_CHARACTERS", 64)
    assert pieces(tokenizer, "中国," * 500) == ["中", "国", ","] * 500


@pytest.mark.parametrize("sentence", ["hello, world! ", "中国,"])
def test_a_long_text_takes_little_memory(tmp_path, sentence):
    load(tmp_path)
    script = (
        "import resource\n"
        "from mlm_jax.text.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer.load({str(tmp_path)!r})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"ids = tokenizer.encode({sentence!r} * 1_000_000)\n"
        f"assert len(ids) == 1_000_000 * len(tokenizer.encode({sentence!r}))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 120  # the library alone takes 1,700 and 500


def test_special_tokens_in_text(tokenizer):
    assert pieces(tokenizer, "a [MASK] b", parse_special_tokens=True) == ["a", "[MASK]", "b"]
    assert pieces(tokenizer, "a [MASK] b") == ["a", "[", "mask", "]", "b"]
    special = set(tokenizer.special_token_ids) - {tokenizer.unknown_token_id}
    assert not special & set(tokenizer.encode(" ".join(SPECIAL_TOKENS)).tolist())


def test_ids_and_tables(tokenizer):
    assert tokenizer.vocabulary_size == len(VOCABULARY)
    assert (tokenizer.pad_token_id, tokenizer.unknown_token_id, tokenizer.cls_token_id) == (0, 2, 3)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (4, 5)
    assert tokenizer.special_token_ids == (0, 2, 3, 4, 5)
    assert [VOCABULARY[i] for i in np.flatnonzero(tokenizer.continues_word)] == [
        p for p in PIECES if p[:2] == "##"
    ]
    assert tokenizer.continues_word.shape == (len(VOCABULARY),)
    assert tokenizer.token_to_id("uber") == VOCABULARY.index("uber")
    assert tokenizer.token_to_id("nothing") is None
    assert tokenizer.id_to_token(len(VOCABULARY)) is None
    with pytest.raises(InputError, match=r"^token 5: expected a string"):
        tokenizer.token_to_id(5)
    assert tokenizer.decode(tokenizer.encode("Hello, unaffable world!")) == "hello, unaffable world!"
    assert tokenizer.decode([3, 6, 4]) == "[CLS] hello [SEP]"


def test_saved_and_loaded_again(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert (folder / "vocab.txt").read_text(encoding="utf-8").splitlines() == VOCABULARY
    for path in (folder, folder / "tokenizer.json", folder / "vocab.txt"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode("Hello Über [MASK]").tolist() == tokenizer.encode("Hello Über [MASK]").tolist()
    script = (
        f"from mlm_jax.text.tokenizer import Tokenizer; print(Tokenizer.load({str(folder)!r}).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == tokenizer.fingerprint


def test_default_accent_stripping_has_the_fingerprint_of_the_explicit_setting(tmp_path):
    unsaid = load(tmp_path).fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": true}')
    assert load(tmp_path).fingerprint == unsaid
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": false}')
    assert load(tmp_path).fingerprint != unsaid


def test_fingerprint_differs_if_encoding_differs(tmp_path):
    other = ["zebra" if entry == "uber" else entry for entry in VOCABULARY]
    made = [
        load(tmp_path),
        load(tmp_path, lowercase=False),
        load(tmp_path, other),
        load(tmp_path, [*VOCABULARY, "z"]),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)


@pytest.mark.parametrize("added", [[], ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]])
def test_a_file_whose_special_tokens_are_not_added_is_the_same_after_it_is_saved(tmp_path, tokenizer, added):
    """As `tokenizers` writes it if they are only in the vocabulary."""
    content = json.loads(tokenizer._backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in added]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    loaded.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == loaded.fingerprint
    assert loaded.encode("[MASK] a", parse_special_tokens=True).tolist()[0] == loaded.mask_token_id


def test_case_is_guessed_from_the_vocabulary(tmp_path):
    assert pieces(load(tmp_path, [*VOCABULARY, "[BRACKET]", "<S>"]), "A") == ["a"]
    assert pieces(load(tmp_path, [*VOCABULARY, "##B"]), "A") == ["[UNK]"]
    assert pieces(load(tmp_path, [*VOCABULARY, "##B"], lowercase=True), "A") == ["a"]


def test_tokenizer_config_in_the_folder_is_used(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"do_lower_case": False}))
    assert pieces(load(tmp_path), "A é") == ["[UNK]", "[UNK]"]
    config.write_text(
        json.dumps({"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False})
    )
    assert pieces(load(tmp_path), "A é 中国") == ["a", "[UNK]", "中", "##国"]
    config.write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not valid JSON"):
        load(tmp_path)


def test_truncation_and_padding_of_a_published_file_are_ignored(tmp_path, tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert pieces(Tokenizer.load(tmp_path), "a b c") == ["a", "b", "c"]


def test_other_tokenizers_with_the_five_tokens_are_accepted(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, "[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.warns(
        UserWarning, match=r"has no post_processor, so transformers adds no .* \[CLS\] text \[SEP\]"
    ):
        loaded = Tokenizer.load(tmp_path)
    assert pieces(loaded, "a hello world.") == ["a", "hello", "[UNK]"]
    loaded.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tokenizer.load(tmp_path).fingerprint == loaded.fingerprint


def test_added_word_with_a_space_is_kept_whole(tmp_path, tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.add_tokens(["hello world"])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert pieces(loaded, "a hello world") == ["a", "hello world"]
    assert loaded.vocabulary_size == len(VOCABULARY) + 1


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_vocabulary_without_a_special_token(tmp_path, token):
    vocabulary = [entry for entry in VOCABULARY if entry != token]
    with pytest.raises(InputError) as caught:
        load(tmp_path, vocabulary)
    assert str(caught.value).startswith(f"{tmp_path / 'vocab.txt'}: no {token} in the vocabulary")


def test_invalid_tokenizer_files_are_rejected(tmp_path):
    for path, expected in [
        (tmp_path, "no tokenizer here"),
        (tmp_path / "missing", "no such file"),
    ]:
        with pytest.raises(InputError, match=expected):
            Tokenizer.load(path)
    file = tmp_path / "tokenizer.json"
    for content in (b"", b"{}", b"[]", b"\xff", b'{"model": 3}'):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.json: (not a tokenizer\.json|not valid JSON|must)"):
            Tokenizer.load(tmp_path)
    file = tmp_path / "vocab.txt"
    for content, expected in [
        (b"\n\n", "file is empty"),
        (b"[PAD]\n\xff\n", "invalid UTF-8 at byte 6"),
    ]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=expected):
            Tokenizer.load(file)


def test_vocabulary_entries_with_line_separators(tmp_path):
    tokenizer = load(tmp_path, [*VOCABULARY[:6], "\u2028", "\x85", "after"])
    assert tokenizer.token_to_id("after") == 8


@pytest.mark.parametrize(
    ("texts", "expected"), [(["a", None], "text 1: expected a string"), (["\ud800"], "text 0")]
)
@pytest.mark.parametrize("parse_special_tokens", [False, True])
def test_invalid_texts_are_rejected(tokenizer, texts, expected, parse_special_tokens):
    with pytest.raises(InputError, match=expected):
        tokenizer.encode_batch(texts, parse_special_tokens=parse_special_tokens)


def test_arguments_of_the_wrong_type_are_one_line(tokenizer):
    """Instead of the tokens of each character, or of a number without its fraction."""
    for texts, found in (("hello", "one string"), (None, "NoneType"), (7, "int"), ({"a": "b"}, "dict")):
        for call in (
            tokenizer.encode_batch,
            tokenizer.encode_words,
            partial(tokenizer.encode_batch, parse_special_tokens=True),
            partial(Tokenizer.train, vocabulary_size=300),
        ):
            with pytest.raises(
                InputError, match=f"(texts|documents): expected a list of strings, found {found}"
            ):
                call(texts)
    for ids, message in (
        ("hello", "has shape .* expected a list of integers"),
        ([1.5], "dtype float64: expected a list of integers"),
        ([[7, 8]], r"has shape \(1, 2\)"),
        ([7, -1], "token_ids: -1: expected ids in"),
        ([len(VOCABULARY)], f"token_ids: {len(VOCABULARY)}: expected ids in"),
    ):
        with pytest.raises(InputError, match=message):
            tokenizer.decode(ids)
    assert tokenizer.decode([]) == ""


MARKERS = {
    "added_tokens_decoder": {
        str(number): {"content": content, "special": special, "normalized": False}
        for number, content, special in [
            (len(VOCABULARY), "[E1]", True),
            (len(VOCABULARY) + 1, "<n>", False),
        ]
    }
}


@pytest.fixture
def marked(tmp_path) -> Tokenizer:
    """A tokenizer with a special and an ordinary added token."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True} | MARKERS))
    return load(tmp_path)


def test_added_tokens_are_read_in_every_text(marked):
    for text in ("a [E1] b<n>c", "a\n[E1]b <n>", "[E1]"):
        expected = marked._prompt_backend.encode(text, add_special_tokens=False).ids
        assert marked.encode(text).tolist() == expected
        assert marked.encode(text, parse_special_tokens=True).tolist() == expected
    assert pieces(marked, "a[E1]b [MASK] [e1]") == ["a", "[E1]", "b", "[", "mask", "]", "[", "[UNK]", "]"]
    assert pieces(marked, "[E1] [MASK]", parse_special_tokens=True) == ["[E1]", "[MASK]"]
    number = len(VOCABULARY)
    assert (marked.token_to_id("[E1]"), marked.token_to_id("<n>")) == (number, number + 1)
    # Only the special one is never masked, nor an answer.
    assert number in marked.special_token_ids
    assert number + 1 not in marked.special_token_ids


@given(st.lists(st.sampled_from(["[E1]", "<n>", "hello", " ", "\n", "é", "[MASK]", "中", "x,", "[", "E1]"])))
def test_added_tokens_are_read_as_by_the_library(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("marked")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True} | MARKERS))
    tokenizer, text = load(folder), "".join(parts)
    assert (
        tokenizer.encode(text).tolist() == tokenizer._text_backend.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("special", [True, False])
def test_literal_special_tokens_are_text_however_they_are_listed(tmp_path, special):
    mask = VOCABULARY.index("[MASK]")
    decoder = {str(mask): {"content": "[MASK]", "special": special, "normalized": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[MASK]": mask}))
    listed = load(tmp_path)
    backend = json.loads(listed._backend.to_str())
    backend["added_tokens"] = [token | {"special": special} for token in backend["added_tokens"]]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(backend))
    for tokenizer in (listed, Tokenizer.load(tmp_path / "other")):
        assert pieces(tokenizer, "a [MASK]") == ["a", "[", "mask", "]"]
        assert pieces(tokenizer, "a [MASK]", parse_special_tokens=True) == ["a", "[MASK]"]
        assert mask in tokenizer.special_token_ids


def test_another_unknown_token_is_rejected(tmp_path, tokenizer):
    content = json.loads(tokenizer._backend.to_str())
    content["model"] |= {"unk_token": "hello"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"unk_token is '\[UNK\]': must be 'hello'"):
        Tokenizer.load(tmp_path)


def test_added_tokens_survive_saving(marked, tmp_path):
    marked.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "vocab.txt", tmp_path / "saved" / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.fingerprint == marked.fingerprint
        assert again.special_token_ids == marked.special_token_ids
        assert pieces(again, "a[E1]b<n>") == ["a", "[E1]", "b", "<n>"]
    with pytest.raises(InputError, match=r"a vocab\.txt cannot express its added tokens \[E1\], <n>"):
        marked.bert_settings()


def test_added_tokens_with_gaps_are_rejected(tmp_path):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E1]": 900}))
    with pytest.raises(InputError, match=rf"'\[E1\]' has id 900, but it would be read as {len(VOCABULARY)}"):
        load(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"[E1]": Infinity}')
    with pytest.raises(InputError, match="its added tokens are damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": ["a"]},
        {"added_tokens_decoder": {"50": {"special": True}}},
        {"added_tokens_decoder": {"50": ["a"]}},
        {"added_tokens_decoder": {"50": {"content": "\ud800"}}},
        {"additional_special_tokens": [3]},
        {"additional_special_tokens": 3},
        {"additional_special_tokens": "[E1]"},
        {"extra_special_tokens": True},
        {"extra_special_tokens": 7},
        {"extra_special_tokens": {"marker": [3]}},
        {"mask_token": {"content": None}},
        {"mask_token": ["[MASK]"]},
        {"do_lower_case": "false"},
        {"strip_accents": 0},
        [],
    ],
)
def test_damaged_configs_are_rejected(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tokenizer_config\.json: "):
        load(tmp_path)


def test_special_tokens_as_entries_of_another_model_are_text(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, "[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert pieces(tokenizer, "a [MASK] [SEP] b") == ["a", "[UNK]", "[UNK]", "b"]


def test_a_word_with_the_name_of_a_special_token_is_text(tmp_path):
    backend = wordpiece.bert_backend({entry: i for i, entry in enumerate(VOCABULARY)}, lowercase=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "mask"}
    config = {f"{role}_token": name for role, name in names.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert pieces(tokenizer, "hello mask") == ["hello", "[UNK]"]
    assert pieces(tokenizer, "hello mask", parse_special_tokens=True) == ["hello", "mask"]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"pad_token": "[UNK]"}, r"'\[UNK\]' is its pad_token and its unk_token: must be two tokens"),
        ({"pad_token": "hello"}, "its pad_token is 'hello', which is a word of texts, too"),
        ({"sep_token": "world"}, "its sep_token is 'world', which is a word of texts, too"),
    ],
)
def test_a_special_token_that_texts_have_is_rejected(tmp_path, tokenizer, roles, message):
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | roles))
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)


def test_bytes_need_no_unknown_token_beside_the_padding(tmp_path):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    entries = {entry: number for number, entry in enumerate(("[PAD]", "[CLS]", "[SEP]", "[MASK]", *alphabet))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(entries, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {f"{role.lower()}_token": f"[{role}]" for role in ("PAD", "CLS", "SEP", "MASK")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[PAD]", **names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert pieces(Tokenizer.load(tmp_path), "a☃") == ["a", "â", "ĺ", "ĥ"]


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_an_unknown_token_that_is_only_added_is_rejected(tmp_path, tokenizer, kind):
    content = json.loads(tokenizer._backend.to_str())
    content["model"] = {"type": kind, "unk_token": "[UNK]", "vocab": {}}
    if kind == "WordPiece":
        content["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": number, "content": entry, "special": entry in SPECIAL_TOKENS, **flags}
        for number, entry in enumerate(VOCABULARY)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(
        InputError, match=r"its model.vocab has no '\[UNK\]': must have the entry for unknown"
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("model", "pattern", "text", "reason"),
    [
        ("WordLevel", "(a+)+$", "a" * 40 + "b", "Onig: Regex search error: retry-limit-in-match over"),
        ("BPE", " ", "☃", "Unk token `[UNK]` not found in the vocabulary"),
    ],
)
def test_a_text_on_which_the_library_fails_is_named(tmp_path, model, pattern, text, reason):
    entries = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b", *(["[UNK]"] if model == "WordLevel" else [])]
    known = {entry: number for number, entry in enumerate(entries)}
    make = {"WordLevel": tokenizers.models.WordLevel, "BPE": partial(tokenizers.models.BPE, merges=[])}
    backend = tokenizers.Tokenizer(make[model](known, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    for options in ({}, {"parse_special_tokens": True}):
        with pytest.raises(
            InputError, match=f"^text 1: the tokenizer cannot encode it: {re.escape(reason)}$"
        ):
            tokenizer.encode_batch(["a", text], **options)
    with pytest.raises(InputError, match=r"^text 0: the tokenizer cannot encode it"):
        tokenizer.encode_words([text])
    assert len(tokenizer.encode("a")) == 1


def test_a_tokenizer_that_draws_its_merges_is_rejected(tmp_path):
    merges = {"vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "aa": 6}}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(**merges, merges=[("a", "a")], dropout=0.3))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"tokenizer\.json: model\.dropout is 0\.3, .* must be null"):
        Tokenizer.load(tmp_path)
    backend.model.dropout = None
    backend.save(str(tmp_path / "tokenizer.json"))
    assert pieces(Tokenizer.load(tmp_path), "aa") == ["aa"]


def test_tokenizers_that_do_not_mark_words_are_recognized(tmp_path, tokenizer):
    assert tokenizer.marks_words
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(VOCABULARY)}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    assert not Tokenizer.load(tmp_path).marks_words


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([], None),
        (["Berlin"], "keeps case and keeps accents"),
        (["über"], "lowercases and keeps accents"),
        (["मेरे"], "lowercases and keeps accents"),
    ],
)
def test_a_guess_from_the_vocabulary_is_reported(tmp_path, recwarn, entries, says):
    load(tmp_path, [*VOCABULARY, *entries])
    messages = [str(warning.message) for warning in recwarn]
    assert [says in message for message in messages] == ([True] if says else [])


def test_another_limit_of_word_lengths_is_kept(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["max_input_chars_per_word"] = 200
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="max_input_chars_per_word is 200, but BertTokenizer .* reads 100"):
        loaded = Tokenizer.load(tmp_path)
    assert len(loaded.encode("a" * 200)) == 200
    assert pieces(loaded, "a" * 201) == ["[UNK]"]


def test_lowercasing_for_a_vocabulary_of_capitals_is_reported(tmp_path, recwarn):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    load(tmp_path, [*VOCABULARY, "Lake"])
    assert not recwarn
    with pytest.warns(UserWarning, match="do_lower_case is true, but most of its words have capitals"):
        load(tmp_path, [*SPECIAL_TOKENS, "AAAAAA", "AAAAAC", "N"])


def test_a_guess_without_any_letter_with_case_is_reported(tmp_path):
    with pytest.warns(UserWarning, match="judging by its entries, it lowercases and strips accents"):
        load(tmp_path, [*SPECIAL_TOKENS, "中", "国"])


def test_a_vocabulary_beside_its_tokenizer_json_is_not_guessed(tmp_path, recwarn):
    Tokenizer.train(["मेरे घर में पानी है"], 100, lowercase=False).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    recwarn.clear()
    assert Tokenizer.load(tmp_path / "vocab.txt").fingerprint == Tokenizer.load(tmp_path).fingerprint
    assert not recwarn


def test_casing_can_be_set_for_a_tokenizer_json(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    assert pieces(Tokenizer.load(tmp_path, lowercase=False), "A é") == ["[UNK]", "e"]
    assert pieces(Tokenizer.load(tmp_path / "tokenizer.json", strip_accents=False), "A é") == ["a", "[UNK]"]


def test_repeated_entries_are_reported(tmp_path):
    with pytest.warns(
        UserWarning, match=r"vocab\.txt:\d+: repeats the entry 'a' of line \d+; the last one counts"
    ):
        tokenizer = load(tmp_path, [*VOCABULARY, "a"])
    assert tokenizer.encode("a").tolist() == [len(VOCABULARY)]
    assert tokenizer.vocabulary_size == len(VOCABULARY) + 1


@pytest.mark.parametrize(
    ("token_id", "message"),
    [
        (2**32 - 1, r"'a' has the id 4,294,967,295: must be below 4,194,304"),
        (3, r"'\[CLS\]' and 'a' have the same id, 3|'a' and '\[CLS\]' have the same id, 3"),
    ],
)
def test_ids_that_no_table_has_are_rejected(tmp_path, tokenizer, token_id, message):
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["a"] = token_id
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"tokenizer\.json: ({message})"):
        Tokenizer.load(tmp_path)


def test_a_huge_vocabulary_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_bytes(b"\n" * (1 << 23))
    with pytest.raises(InputError, match=r"vocab\.txt: has more than 4,194,304 lines"):
        Tokenizer.load(file)
    os.truncate(file, 1 << 36)
    with pytest.raises(InputError, match=r"vocab\.txt: 68719 MB: must be at most 268 MB"):
        Tokenizer.load(file)


@pytest.mark.parametrize("places", ["assets/tokenizer/vocabulary.txt", "assets/vocabulary.txt"])
def test_casing_of_a_keras_hub_preset(tmp_path, places):
    file = tmp_path / places
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{entry}\n" for entry in [*VOCABULARY, "A"]))
    with pytest.raises(InputError, match=r"no tokenizer\.json, in which KerasHub stores its settings"):
        Tokenizer.load(tmp_path)
    settings = {"registered_name": "keras_hub>BertTokenizer", "config": {"lowercase": True}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    for path in (tmp_path, file):
        assert pieces(Tokenizer.load(path), "A é") == ["a", "[UNK]"]
    for change, expected in [
        ({"config": {"lowercase": "yes"}}, "lowercase = 'yes'"),
        ({"registered_name": "keras_hub>AlbertTokenizer"}, "AlbertTokenizer is not supported"),
        ({"config": {"suffix_indicator": "@@"}}, "suffix_indicator = '@@' is not supported: must be '##'"),
        ({"config": {"oov_token": "<unk>"}}, "oov_token = '<unk>' is not supported"),
        ({"config": {"split": False}}, "split = False is not supported: must be True"),
    ]:
        (tmp_path / "tokenizer.json").write_text(json.dumps(settings | change))
        with pytest.raises(InputError, match=expected):
            Tokenizer.load(file)


SENTENCES = [
    f"The {a} {b} {c}, {n}."
    for n, (a, b, c) in enumerate(
        (a, b, c)
        for a in ("quick", "slow", "Zürich", "unhappy")
        for b in ("fox", "dog", "tower", "中国")
        for c in ("jumps", "sleeps", "stands", "thinks", "speaks")
    )
]


def test_training(tmp_path):
    tokenizer = Tokenizer.train(SENTENCES, 150)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.vocabulary_size == 150
    assert pieces(tokenizer, "THE tower") == ["the", "tower"]
    assert tokenizer.token_to_id("##国") is None
    for sentence in SENTENCES:
        assert tokenizer.unknown_token_id not in tokenizer.encode(sentence)
    cased = Tokenizer.train(SENTENCES, 150, lowercase=False)
    assert cased.token_to_id("T") is not None
    cased.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == Tokenizer.load(tmp_path / "vocab.txt").fingerprint


@pytest.mark.parametrize(
    ("text", "options", "kept"),
    [
        ("café, and " + "the old city by the lake and the river " * 8, {}, "cafe"),
        ("schöne Grüße aus Köln", {}, "schöne grüße"),
        ("अपने पोस्ट ऑफिस में भर्ती", {}, "अपने पोस्ट ऑफिस"),
        ("がぎぐ ごはん", {}, "がぎぐ"),
        ("한국어 문장", {}, "한국어"),
        ("schöne Grüße aus Köln", {"strip_accents": True}, "schone"),
        ("Schöne Grüße aus Köln", {"lowercase": False}, "Schöne"),
        ("Schöne Grüße aus Köln", {"lowercase": False, "strip_accents": True}, "Schone"),
    ],
)
@pytest.mark.filterwarnings("ignore:accents are kept", "ignore:strip_accents")
def test_marks_that_are_letters_are_kept_by_default(tmp_path, text, options, kept):
    tokenizer = Tokenizer.train([text], 300, **options)
    tokenizer.save(tmp_path)
    for loaded in (tokenizer, Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "vocab.txt")):
        assert kept in loaded.decode(loaded.encode(text))


def test_the_treatment_of_accents_is_reported(recwarn):
    Tokenizer.train(["the tower stands in a city of rivers and bridges " * 20 + "café"], 100)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"accents are kept: .* 16\.7% of the characters \(ö, ü\)"):
        Tokenizer.train(["schöne grüße aus köln"], 100)
    with pytest.warns(UserWarning, match=r"strip_accents: changes or removes 16\.7%"):
        Tokenizer.train(["schöne grüße aus köln"], 100, strip_accents=True)


def test_words_of_any_length(tmp_path):
    dna = ["".join("ACGT"[(i * i + i // 7) % 4] for i in range(n, n + 300)) for n in range(20)]
    with pytest.warns(
        UserWarning, match=r"100\.0% of the tokens are unknown.*\(300 characters\).*max-input-chars"
    ):
        Tokenizer.train(dna, 100)
    tokenizer = Tokenizer.train(dna, 100, max_input_chars_per_word=300)
    assert tokenizer.unknown_token_id not in tokenizer.encode(dna[0])
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(again.encode(dna[0]), tokenizer.encode(dna[0]))
    with pytest.raises(InputError, match=r"PreTrainedTokenizer, which needs a tokenizer\.json"):
        Tokenizer.load(tmp_path / "vocab.txt")
    with pytest.raises(InputError, match="max_input_chars_per_word is 300"):
        tokenizer.bert_settings()
    with pytest.raises(InputError, match="max_input_chars_per_word 0: expected at least 1"):
        Tokenizer.train(dna, 100, max_input_chars_per_word=0)


def test_training_gives_the_same_files_in_every_process(tmp_path):
    script = (
        "import sys\n"
        "from mlm_jax.text.tokenizer import Tokenizer\n"
        f"Tokenizer.train({SENTENCES!r}, 150).save(sys.argv[1])\n"
    )
    digests = set()
    for run in ("a", "b", "c"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / run)], check=True)
        digests.add(
            tuple(
                hashlib.sha256((tmp_path / run / name).read_bytes()).hexdigest()
                for name in ("tokenizer.json", "vocab.txt")
            )
        )
    assert len(digests) == 1


def test_training_samples_evenly_within_its_limit():
    documents = [f"{i:04d}" for i in range(1000)]
    sample = wordpiece.sample_documents(iter(documents), 1000)
    assert sample == documents[::4]
    assert wordpiece.sample_documents(["x" * 50], 10) == ["x" * 10]


def test_rare_characters_are_left_out():
    tokenizer = Tokenizer.train(["abcde " * 300_000, "ω"], 100)
    assert tokenizer.token_to_id("ω") is None
    assert tokenizer.token_to_id("abcde") is not None
    assert Tokenizer.train(["abcde", "ω"], 100).token_to_id("ω") is not None
    small = Tokenizer.train(["aaaa bbb cc d"], 9)
    assert [small.id_to_token(i) for i in range(5, 9)] == ["a", "b", "##a", "##b"]


def test_training_without_text_or_room_is_rejected(tmp_path):
    for documents, size, expected in [
        ([], 100, "no text"),
        ([" \n"], 100, "no text"),
        (["a"], 6, "at least 7"),
    ]:
        with pytest.raises(InputError, match=expected):
            Tokenizer.train(documents, size)
    with pytest.raises(InputError, match="document 1: lone surrogate"):
        Tokenizer.train(["fine", "\ud800"], 100)


@pytest.mark.parametrize(
    ("name", "size", "text", "expected"),
    [
        ("uncased", 30522, "Über unaffable", ["uber", "una", "##ffa", "##ble"]),
        ("cased", 28996, "Über unaffable", ["Ü", "##ber", "un", "##af", "##fa", "##ble"]),
        ("chinese", 21128, "我Love中国", ["我", "love", "中", "国"]),
        ("multilingual-cased", 119547, "Zürich", ["Zürich"]),
    ],
)
def test_published_vocabularies(shared_data, name, size, text, expected):
    tokenizer = Tokenizer.load(shared_data / "vocab" / f"bert-base-{name}" / "vocab.txt")
    assert tokenizer.vocabulary_size == size
    assert pieces(tokenizer, text) == expected


def test_published_tokenizer_json_equals_its_vocabulary(shared_data):
    folder = shared_data / "vocab" / "bert-base-uncased"
    assert (
        Tokenizer.load(folder / "tokenizer.json").fingerprint
        == Tokenizer.load(folder / "vocab.txt").fingerprint
    )
