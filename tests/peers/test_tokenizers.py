"""Token ids compared with transformers and KerasHub for the same folder: equal, or an error that names the class."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras_hub = pytest.importorskip("keras_hub")
transformers = pytest.importorskip("transformers")

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "a",
    "lake",
    "in",
    "utah",
    "the",
    "café",
    "cafe",
    "Lake",
    "Utah",
    "new",
    "york",
    "ß",
    "ss",
    "e1",
    "mask",
    "u",
]
WORDS += ["ü", "中", "国", "##国", "के", "क", "##े", "##ü", "##u", "##s", "##a", ".", ",", "[", "]"]
VOCABULARY = [*SPECIAL, *WORDS]
SIZE = len(VOCABULARY)
TEXTS = [
    "a lake in Utah.",
    "Café, CAFÉ und cafe\u0301",
    "中国 a中国a",
    "के lakes ü Ü",
    "a [E1] lake[E1] [e1]",
    "[E4] [E3][E2] a",
    "the new york lakes",
    "a [MASK] in [CLS]",
    "x" * 101 + " " + "a" * 120,
    "İstanbul ß \u200b\ufffda\x00",
    "",
]
BERT = {"model_type": "bert"}


def rebuilt(lowercase: bool, **parts: Any) -> dict[str, Any]:
    """Returns the content of a tokenizer.json with BERT's rules and other `parts`."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(SPECIAL)
    content = json.loads(backend.to_str())
    content["model"] |= parts.pop("model", {})
    content["added_tokens"] += parts.pop("added_tokens", [])
    return content | parts


def added(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized")
    return {"id": token_id, "content": content, "special": True} | dict.fromkeys(names, False) | flags


def lines(entries: list[str], end: str = "\n", start: str = "") -> bytes:
    return (start + "".join(f"{entry}{end}" for entry in entries)).encode()


MARKER = {key: value for key, value in added(0, "[E1]").items() if key != "id"}
FOLDERS: dict[str, dict[str, Any]] = {
    "bare": {},
    "config is empty": {"tokenizer_config": {}},
    **{
        f"{lower} {strip} {chinese}": {
            "tokenizer_config": {
                "do_lower_case": lower,
                "strip_accents": strip,
                "tokenize_chinese_chars": chinese,
            }
        }
        for lower in (True, False)
        for strip in (True, False, None)
        for chinese in (True, False)
    },
    "strip_accents alone": {"tokenizer_config": {"strip_accents": False}},
    "class": {"tokenizer_config": {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}},
    "class in config.json": {"config": BERT | {"tokenizer_class": "BertTokenizer"}},
    "distilbert": {"config": {"model_type": "distilbert"}},
    "tokenizer.json that lowercases": {"tokenizer": rebuilt(True)},
    "cased tokenizer.json without a config": {"tokenizer": rebuilt(False)},
    "cased tokenizer.json, uncased config": {
        "tokenizer": rebuilt(False),
        "tokenizer_config": {"do_lower_case": True, "strip_accents": False},
    },
    "uncased tokenizer.json, cased config": {
        "tokenizer": rebuilt(True),
        "tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    },
    "tokenizer.json that does not clean": {
        "tokenizer": rebuilt(True, normalizer=rebuilt(True)["normalizer"] | {"clean_text": False})
    },
    "tokenizer.json of another kind": {
        "tokenizer": rebuilt(True, pre_tokenizer={"type": "WhitespaceSplit"}),
        "tokenizer_config": {"tokenizer_class": "BertTokenizer"},
    },
    "tokenizer.json of another kind, read as it is": {
        "tokenizer": rebuilt(True, pre_tokenizer={"type": "WhitespaceSplit"}, normalizer=None),
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
    },
    "generic class": {
        "tokenizer": rebuilt(False, model={"max_input_chars_per_word": 200}),
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
    },
    "tokenizer.json with a marker": {
        "tokenizer": rebuilt(True, added_tokens=[added(SIZE, "[E1]")]),
        "tokenizer_config": {"tokenizer_class": "BertTokenizer"},
    },
    "generic class with a marker": {
        "tokenizer": rebuilt(True, added_tokens=[added(SIZE, "[E1]")]),
        "tokenizer_config": {"tokenizer_class": "TokenizersBackend"},
    },
    "added word": {
        "tokenizer": rebuilt(True, added_tokens=[added(SIZE, "new york", special=False, normalized=True)])
    },
    "added_tokens.json": {"added_tokens": {"[E1]": SIZE, "New York": SIZE + 1}},
    "added_tokens.json, additional": {
        "added_tokens": {"[E1]": SIZE},
        "tokenizer_config": {"additional_special_tokens": ["[E1]"]},
    },
    "added_tokens.json, own role": {
        "added_tokens": {"[E1]": SIZE},
        "tokenizer_config": {"marker_token": "[E1]"},
    },
    "additional tokens and own roles": {
        "tokenizer_config": {
            "additional_special_tokens": ["[E1]"],
            "extra_special_tokens": {"marker_token": "[E2]"},
            "first_token": "[E3]",
            "bos_token": "[E4]",
        },
    },
    "additional tokens of two files": {
        "tokenizer_config": {"additional_special_tokens": []},
        "special_tokens_map": {"additional_special_tokens": ["[E1]"]},
    },
    "model type that ignores the class": {
        "config": {"model_type": "modernbert"},
        "tokenizer_config": {"tokenizer_class": "BertTokenizer"},
        "tokenizer": rebuilt(False),
        "added_tokens": {"[E1]": SIZE},
    },
    "model type of the generic class": {
        "config": {"model_type": "nystromformer"},
        "tokenizer_config": {"tokenizer_class": "BertTokenizer"},
        "tokenizer": rebuilt(False),
    },
    "added_tokens.json of a vocabulary entry": {"added_tokens": {"Lake": VOCABULARY.index("Lake")}},
    "added_tokens.json with a gap": {"added_tokens": {"[E1]": SIZE + 7}},
    "added_tokens.json, special": {
        "added_tokens": {"[E1]": SIZE},
        "special_tokens_map": {"additional_special_tokens": ["[E1]"], "mask_token": "[MASK]"},
    },
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": {str(SIZE): MARKER}}},
    "added_tokens_decoder, ordinary word": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                str(SIZE): MARKER | {"content": "New York", "special": False, "normalized": True}
            }
        }
    },
    "added_tokens_decoder and tokenizer.json": {
        "tokenizer": rebuilt(True, added_tokens=[added(SIZE, "[E2]"), added(SIZE + 1, "[E1]")]),
        "tokenizer_config": {"added_tokens_decoder": {str(SIZE): MARKER}},
    },
    "added_tokens_decoder of a vocabulary entry": {
        "tokenizer_config": {
            "added_tokens_decoder": {str(VOCABULARY.index("Lake")): MARKER | {"content": "Lake"}}
        }
    },
    "added_tokens_decoder with lstrip": {
        "tokenizer_config": {
            "added_tokens_decoder": {str(SIZE): MARKER | {"lstrip": True, "single_word": True}}
        }
    },
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": ["[E1]", "the"]}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": {"marker_token": "[E1]"}}},
    "empty extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": {}}},
    "empty extra_special_tokens of two files": {
        "tokenizer_config": {"extra_special_tokens": {}},
        "special_tokens_map": {"additional_special_tokens": ["[E1]"]},
    },
    "empty extra_special_tokens and additional ones": {
        "tokenizer_config": {"extra_special_tokens": {}, "additional_special_tokens": ["[E1]"]},
    },
    "special_tokens_map": {
        "special_tokens_map": {"additional_special_tokens": ["[E1]"], "cls_token": {"content": "[CLS]"}}
    },
    "own roles of two files": {
        "tokenizer_config": {
            "b_token": "[E1]",
            "c_token": MARKER | {"__type": "AddedToken", "content": "[E2]"},
        },
        "special_tokens_map": {"a_token": "[E3]", "b_token": "[E4]"},
    },
    "special_tokens_map, extra list": {"special_tokens_map": {"extra_special_tokens": ["[E1]"]}},
    "extra lists of two files": {
        "tokenizer_config": {"extra_special_tokens": ["[E3]", "[E1]"]},
        "special_tokens_map": {"extra_special_tokens": ["[E1]", "[E2]"]},
        "added_tokens": {"[E2]": SIZE},
    },
    "special_tokens_map, extra roles": {
        "tokenizer_config": {"extra_special_tokens": {"a_token": "[E2]"}},
        "special_tokens_map": {"extra_special_tokens": {"a_token": "[E1]"}},
    },
    "special_tokens_map, extra roles and additional ones": {
        "tokenizer_config": {"extra_special_tokens": ["[E2]"]},
        "special_tokens_map": {
            "extra_special_tokens": {"a_token": "[E1]"},
            "additional_special_tokens": ["[E3]"],
        },
    },
    "own roles in a list of them": {
        "tokenizer_config": {"model_specific_special_tokens": {"marker_token": "[E1]"}}
    },
    "another role": {"tokenizer_config": {"bos_token": "[E1]", "eos_token": None}},
    "own role": {"tokenizer_config": {"marker_token": "[E1]"}},
    "renamed mask": {"tokenizer_config": {"mask_token": "<mask>"}},
    "renamed unknown token": {
        "vocabulary": lines([*VOCABULARY, "<unk>"]),
        "special_tokens_map": {"unk_token": {"content": "<unk>"}},
    },
    "absent unknown token": {"special_tokens_map": {"unk_token": {"content": "<unk>"}}},
    "byte order mark": {"vocabulary": lines(VOCABULARY, start="\ufeff")},
    "Windows line ends": {"vocabulary": lines(VOCABULARY, end="\r\n")},
    "trailing spaces": {"vocabulary": lines(VOCABULARY, end=" \t\n")},
    "trailing controls": {"vocabulary": lines([*VOCABULARY, "a\x1c", "lake\x1f", "utah\x85", "the\u2009"])},
    "trailing ideographic spaces": {"vocabulary": lines(VOCABULARY, end="\u3000\n")},
    "blank lines": {"vocabulary": lines([*VOCABULARY[:9], "", "", *VOCABULARY[9:], "", ""])},
    "repeated entries": {"vocabulary": lines([*VOCABULARY, "a", "lake", "a"])},
    "leading spaces": {"vocabulary": lines([*SPECIAL, " a", *WORDS[1:]])},
    "MeCab": {
        "tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    },
    "MeCab without a class": {"tokenizer_config": {"word_tokenizer_type": "mecab", "do_lower_case": False}},
    "characters": {"tokenizer_config": {"subword_tokenizer_type": "character"}},
    "class of SentencePiece": {"tokenizer_config": {"tokenizer_class": "KoBertTokenizer"}},
    "SentencePiece": {"vocabulary": lines([*SPECIAL, "▁a", "▁lake", "s", "▁in"])},
    "byte-level": {"vocabulary": lines([*SPECIAL, "Ġa", "Ġlake", "s", "Ġin"])},
    **{
        name: {"tokenizer_config": {"tokenizer_class": name}, "tokenizer": rebuilt(True)}
        for name in (
            "AlbertTokenizer",
            "XLMRobertaTokenizer",
            "RobertaTokenizer",
            "MPNetTokenizer",
            "FNetTokenizer",
        )
    },
    "model type of another tokenizer": {"config": {"model_type": "roberta"}, "tokenizer": rebuilt(True)},
    "own code": {
        "tokenizer_config": {"auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}},
    },
    "special tokens as text": {
        "tokenizer_config": {"split_special_tokens": True, "additional_special_tokens": ["[E1]"]}
    },
    "other prefix": {"tokenizer_config": {"wordpieces_prefix": "@@"}},
    "never_split": {"tokenizer_config": {"never_split": ["[E1]"], "do_basic_tokenize": True}},
    "no basic tokenization": {"tokenizer_config": {"do_basic_tokenize": False}},
    "length": {"tokenizer_config": {"model_max_length": 4, "padding_side": "left"}},
}
REFUSED = {
    "tokenizer.json of another kind": "BertTokenizer",
    "tokenizer.json that does not clean": "BertTokenizer",
    "added_tokens.json with a gap": r"'\[E1\]' has id",
    "absent unknown token": "has no '<unk>'",
    "MeCab": "BertJapaneseTokenizer",
    "MeCab without a class": "BertTokenizer with word_tokenizer_type 'mecab'",
    "characters": "subword_tokenizer_type 'character'",
    "class of SentencePiece": "KoBertTokenizer",
    "SentencePiece": "SentencePiece",
    "byte-level": "byte-level BPE",
    "AlbertTokenizer": "AlbertTokenizer",
    "XLMRobertaTokenizer": "XLMRobertaTokenizer",
    "RobertaTokenizer": "RobertaTokenizer",
    "FNetTokenizer": "FNetTokenizer",
    "model type of another tokenizer": "its class is RobertaTokenizer",
    "own code": "tokenization_mine.Mine",
    "special tokens as text": "split_special_tokens",
    "other prefix": "wordpieces_prefix",
}


def make(folder: Path, name: str) -> Path:
    files = {"config": BERT} | FOLDERS[name]
    (folder / "vocab.txt").write_bytes(files.pop("vocabulary", lines(VOCABULARY)))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def assert_same_ids(folder: Path, ours: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, " ".join(TEXTS)]
    for text, ids in zip(texts, ours.encode_batch(texts, parse_special_tokens=True), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    # Without BERT's five special tokens in the text, both ways of encoding agree.
    plain = [text.replace("[MASK]", "mask").replace("[CLS]", "cls") for text in texts]
    for text, ids in zip(plain, ours.encode_batch(plain), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path, name)
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            Tokenizer.load(folder)
        return
    ours = Tokenizer.load(folder)
    assert_same_ids(folder, ours)
    text = ours.encode("a [MASK] lake").tolist()
    assert ours.mask_token_id not in text


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in REFUSED])
def test_a_saved_folder_is_read_equally_by_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    ours = Tokenizer.load(make(tmp_path / "source", name))
    saved = tmp_path / "saved"
    ours.save(saved)
    (saved / "config.json").write_text(json.dumps(BERT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Tokenizer.load(saved)
    assert again.fingerprint == ours.fingerprint
    assert again.special_token_ids == ours.special_token_ids
    assert_same_ids(saved, again)
    if json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] != "BertTokenizer":
        with pytest.raises(InputError, match=r"needs a tokenizer\.json"):
            Tokenizer.load(saved / "vocab.txt")
    else:
        alone = Tokenizer.load(saved / "vocab.txt")
        assert alone.special_token_ids == ours.special_token_ids
        for ids, expected in zip(alone.encode_batch(TEXTS), ours.encode_batch(TEXTS), strict=True):
            np.testing.assert_array_equal(ids, expected)


def test_a_byte_level_tokenizer_has_ends_besides_its_frame(tmp_path: Path) -> None:
    names = ["<pad>", "<unk>", "<mask>", "<s>", "<c>", "</s>"]
    entries = [*names, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    (tmp_path / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "<c>"}))
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert set(ours.special_token_ids) == set(theirs.all_special_ids)
    for text in ("a <s> b</s>", "<c> x <mask>"):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, parse_special_tokens=True).tolist() == expected


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
def test_ids_are_those_of_keras_hub(tmp_path: Path, lowercase: bool, strip_accents: bool) -> None:
    theirs = keras_hub.tokenizers.BertTokenizer(
        vocabulary=VOCABULARY, lowercase=lowercase, strip_accents=strip_accents
    )
    theirs.save_to_preset(str(tmp_path))
    # KerasHub also composes characters and folds case (ß becomes ss).
    texts = ["a lake in Utah.", "Café, CAFÉ und cafe", "中国 a中国a", "ü Ü u", "", "new york, [a]"]
    for path in (tmp_path, tmp_path / "assets" / "tokenizer" / "vocabulary.txt"):
        for text, ids in zip(texts, Tokenizer.load(path).encode_batch(texts), strict=True):
            assert ids.tolist() == np.asarray(theirs(text)).tolist(), text
