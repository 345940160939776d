"""Vocabularies of every kind: what they make of text, their first entries, casing, and the same files everywhere."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_jax.commands.tokenizer import main
from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer
from tests.text.odd_texts import odd_texts
from tests.text.test_words import assert_words_of_the_library

TEXTS = [
    "The lakes in Utah are deep and the rivers of Maine are long.",
    "Café owners don't say 1,000 words; the lakes aren't deep.",
    "Straße und Strände, Lakes and lake houses in [E1] Maine.",
] * 4
DNA = ["ACGTACGTTTGACA ACGTAC", "acgtNNACGTACG"]
KINDS = ["wordpiece", "byte-bpe", "unigram", "characters"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FIRST = [*SPECIAL, "[unused0]", "[unused1]", "[E1]", "New York"]


def trained(kind: str, size: int = 330, texts: list[str] = TEXTS, **settings: Any) -> Tokenizer:
    if kind == "unigram":
        pytest.importorskip("sentencepiece")
    return Tokenizer.train(texts, size, kind=kind, **settings)  # type: ignore[arg-type]


def pieces(tokenizer: Tokenizer, text: str, **options: Any) -> list[str | None]:
    return [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text, **options).tolist()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, "k-mers"])
def test_first_entries_and_words(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind, reserved=2, user_tokens=["[E1]", "New York"])
    first = [str(tokenizer.id_to_token(number)).rstrip("▁") for number in range(len(FIRST))]
    assert first == FIRST
    assert tokenizer.vocabulary_size <= 330
    assert tokenizer.special_token_ids == (0, 1, 2, 3, 4)
    ids = tokenizer.encode("lake[E1]New York [MASK] [unused0] [CLS]").tolist()
    assert [i for i in ids if i < len(FIRST) and i != 1] == [7, 8]
    assert 4 in tokenizer.encode("a [MASK] b", parse_special_tokens=True).tolist()
    assert_words_of_the_library(tokenizer, [*odd_texts(150), *TEXTS])
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"lowercase": True, "strip_accents": True}, ["CAFÉ", "cafe\u0301", "café", "cafe"]),
        ({"lowercase": True, "strip_accents": False}, ["CAFÉ", "café"]),
        ({"lowercase": False, "strip_accents": True}, ["Café", "Cafe"]),
        ({}, []),
    ],
)
def test_casing_and_accents(kind: str, settings: dict[str, Any], same: list[str]) -> None:
    tokenizer = trained(kind, **settings)
    everything = ["CAFÉ", "café", "cafe", "Café", "Cafe", "CAFE"]
    found = {text: tuple(tokenizer.encode(text).tolist()) for text in [*everything, *same]}
    assert len({found[text] for text in same}) <= 1
    if not settings:
        # Accents are many in these texts, and letters therefore.
        assert len({found[text] for text in everything}) == (2 if kind == "wordpiece" else 6)
    elif not settings["strip_accents"]:
        assert found["café"] != found["cafe"]


def test_what_the_kinds_make_of_text() -> None:
    assert pieces(trained("characters"), "Lake in") == [*"Lake", *"in"]
    assert pieces(trained("k-mers", 40, DNA, k=3), "ACGTAC G") == ["ACG", "TAC", "G"]
    assert pieces(trained("k-mers", 40, DNA, k=3, lowercase=True), "ACGnn") == ["acg", "[UNK]"]
    assert pieces(trained("byte-bpe"), "the lakes") == ["the", "Ġlakes"]
    assert trained("byte-bpe").decode(trained("byte-bpe").encode("☃ 東京 the")) == "☃ 東京 the"
    unigram = pieces(trained("unigram", 120), "the lakes")
    assert "".join(map(str, unigram)) == "▁the▁lakes"


SCRIPT = """
import sys
from mlm_jax.text.tokenizer import Tokenizer
from tests.text.test_training import TEXTS
kind, folder = sys.argv[1:]
Tokenizer.train(TEXTS, 330, kind=kind, reserved=1).save(folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte-bpe", "unigram", "characters", "k-mers"])
def test_every_process_writes_the_same_files(kind: str, tmp_path: Path) -> None:
    hashes = set()
    for seed, threads in (("1", "1"), ("2", "4"), ("3", "2")):
        folder = tmp_path / seed
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, kind, str(folder)], env=environment, check=True
        )
        files = sorted(folder.iterdir())
        hashes.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(hashes) == 1


@pytest.mark.filterwarnings("ignore")
def test_the_command_trains_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dna.txt").write_text("\n".join(DNA))
    flags = ["--kind", "k-mers", "--k", "2", "--vocab-size", "30", "--reserved", "3"]
    flags += ["--user-token", "[A]", "--user-token", "[B]"]
    main(
        ["--input", str(tmp_path / "dna.txt"), "--output", str(tmp_path / "out"), *flags], "mlm-jax tokenizer"
    )
    assert "entries, fingerprint" in capsys.readouterr().out
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert pieces(tokenizer, "ACG[B]") == ["AC", "G", "[B]"]
    assert tokenizer.token_to_id("[B]") == 9


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sentences", {}, "kind 'sentences': expected wordpiece, byte-bpe"),
        ("k-mers", {"k": 0}, "k 0: expected at least 1"),
        ("wordpiece", {"reserved": -1}, "reserved -1: expected at least 0"),
        ("wordpiece", {"max_input_chars_per_word": 0}, "max_input_chars_per_word 0: expected at least 1"),
        (
            "byte-bpe",
            {"vocabulary_size": 200},
            "vocabulary size 200: expected at least 261, room for every byte",
        ),
        ("characters", {"vocabulary_size": 5}, "vocabulary size 5: expected at least 7"),
        ("characters", {"reserved": 400}, "vocabulary size 330: expected at least 407"),
        ("unigram", {"vocabulary_size": 9}, "vocabulary size 9: SentencePiece cannot train it"),
        ("wordpiece", {"user_tokens": ["[MASK]"]}, r"user token '\[MASK\]': is given twice, or"),
        ("wordpiece", {"user_tokens": ["a", "a"]}, "user token 'a': is given twice"),
        ("wordpiece", {"user_tokens": [" a"]}, "user token ' a': expected visible text"),
        ("wordpiece", {"user_tokens": "ab"}, "user_tokens: expected a list of strings, found one string"),
        ("wordpiece", {"user_tokens": [1]}, "user token 1: expected visible text"),
        ("wordpiece", {"k": 3}, "k 3: has no effect on kind 'wordpiece'; expected kind 'k-mers'"),
        (
            "byte-bpe",
            {"max_input_chars_per_word": 7},
            "has no effect on kind 'byte-bpe'; expected kind 'wordpiece'",
        ),
        ("k-mers", {"k": 2.5}, "k 2.5: expected a whole number"),
        ("wordpiece", {"vocabulary_size": "300"}, "vocabulary_size '300': expected a whole number"),
        # Otherwise, a sample would be halved for ever.
        ("wordpiece", {"sample_characters": -1}, "sample_characters -1: expected a whole number, at least 1"),
        ("wordpiece", {"user_tokens": [""]}, "user token '': expected visible text"),
        ("wordpiece", {"user_tokens": ["a\n"]}, "expected visible text"),
    ],
)
def test_settings_that_make_no_sense(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(kind, **{"size": settings.pop("vocabulary_size", 330), **settings})


@pytest.mark.parametrize("kind", [*KINDS, "k-mers"])
def test_text_without_anything_visible(kind: str) -> None:
    for texts in ([], [" \n"]):
        with pytest.raises(InputError, match="no text to train a tokenizer on"):
            trained(kind, texts=texts)


def test_unigram_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"needs sentencepiece: pip install 'mlm-jax\[sentencepiece\]'"):
        Tokenizer.train(TEXTS, 100, kind="unigram")
