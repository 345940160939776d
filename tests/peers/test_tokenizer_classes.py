"""Tokenizers of other encoders beside transformers: ids of thousands of texts, frames, and what is saved."""

import io
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer
from tests.text.odd_texts import odd_texts, real_texts

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

NUM_ODD = NUM_REAL = 2500
RESIDUES = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPNKQFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"]


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def xlm_roberta(folder: Path, shared: Path) -> Path:
    write(folder, config={"model_type": "xlm-roberta"})
    shutil.copyfile(
        shared / "tokenizers/xlm-roberta-base/sentencepiece.bpe.model", folder / "sentencepiece.bpe.model"
    )
    return folder


@cache
def sentencepiece_model(shared: Path, **special: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(real_texts(shared, 400)),
        model_writer=model,
        vocab_size=1500,
        user_defined_symbols="(,)",
        character_coverage=0.98,
        minloglevel=2,
        **special,
    )
    return model.getvalue()


def small(class_name: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, shared: Path) -> Path:
        write(folder, tokenizer_config={"tokenizer_class": class_name})
        (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model(shared))
        return folder

    return make


def albert(folder: Path, shared: Path, **settings: Any) -> Path:
    """Has the special pieces where ALBERT has them."""
    write(folder, tokenizer_config={"tokenizer_class": "AlbertTokenizer", **settings})
    special = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}
    (folder / "spiece.model").write_bytes(sentencepiece_model(shared, **special))
    return folder


def cased_albert(folder: Path, shared: Path) -> Path:
    return albert(folder, shared, do_lower_case=False, keep_accents=True)


def mpnet(folder: Path, shared: Path) -> Path:
    words = (shared / "vocab/bert-base-uncased/vocab.txt").read_text().split("\n")[104:]
    entries = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "[CLS]", *words[:-1], "<mask>"]
    write(folder, config={"model_type": "mpnet"})
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    return folder


def electra(folder: Path, shared: Path) -> Path:
    write(folder, config={"model_type": "electra"}, tokenizer_config={"tokenizer_class": "ElectraTokenizer"})
    shutil.copyfile(shared / "vocab/bert-base-uncased/vocab.txt", folder / "vocab.txt")
    return folder


def modern_bert(folder: Path, shared: Path) -> Path:
    """Bytes as in GPT-NeoX, with spaces of code as added tokens and BERT's names at the end."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(real_texts(shared, 1200), trainer)
    backend.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    backend.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True)])
    ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", ends
    )
    roles = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "mask", "pad", "sep", "unk")}
    write(
        folder,
        config={"model_type": "modernbert"},
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **roles},
    )
    backend.save(str(folder / "tokenizer.json"))
    return folder


def esm(folder: Path, shared: Path) -> Path:
    write(folder, config={"model_type": "esm"}, tokenizer_config={"tokenizer_class": "EsmTokenizer"})
    (folder / "vocab.txt").write_text("\n".join(RESIDUES))
    return folder


def dnabert(folder: Path, shared: Path) -> Path:
    source = shared / "tokenizers/dnabert-6mer"
    write(folder, config={"model_type": "bert"})
    for file in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / file, folder / file)
    return folder


def published(name: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, shared: Path) -> Path:
        return shutil.copytree(shared / "tokenizers" / name, folder, copy_function=shutil.copyfile)

    return make


def bert(name: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, shared: Path) -> Path:
        write(
            folder,
            config={"model_type": "bert"},
            tokenizer_config={"do_lower_case": name.endswith("uncased")},
        )
        shutil.copyfile(shared / f"vocab/{name}/vocab.txt", folder / "vocab.txt")
        return folder

    return make


MADE: dict[str, Callable[[Path, Path], Path]] = {
    "XLM-R": xlm_roberta,
    "small XLM-R": small("XLMRobertaTokenizerFast"),
    "small CamemBERT": small("CamembertTokenizer"),
    "ALBERT": albert,
    "cased ALBERT": cased_albert,
    "MPNet": mpnet,
    "ELECTRA": electra,
    "ModernBERT": modern_bert,
    "ESM": esm,
    "DNABERT": dnabert,
    "RoBERTa": published("roberta-base"),
    "DistilBERT": published("distilbert-base-uncased"),
    "BERT": bert("bert-base-cased"),
    "multilingual BERT": bert("bert-base-multilingual-cased"),
    "Chinese BERT": bert("bert-base-chinese"),
}


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    return odd_texts(NUM_ODD) + real_texts(shared_data, NUM_REAL)


def assert_same_ids(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    for text, ids, wanted in zip(
        texts, ours.encode_batch(texts, parse_special_tokens=True), expected, strict=True
    ):
        assert ids.tolist() == wanted, text


def assert_same_frames(ours: Tokenizer, theirs: Any) -> None:
    first, second = "A lake in Utah.", "MKTAY ACG"
    a, b = (ours.encode(text).tolist() for text in (first, second))
    assert theirs(first)["input_ids"] == [ours.cls_token_id, *a, ours.sep_token_id]
    pair = theirs(first, second, return_token_type_ids=True)
    between = list(ours.frame.between)
    assert pair["input_ids"] == [ours.cls_token_id, *a, *between, *b, ours.sep_token_id]
    if ours.frame.second_segment:
        assert pair["token_type_ids"] == [0] * (1 + len(a) + len(between)) + [1] * (len(b) + 1)


def assert_same_words(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    """Compares where words begin with `word_ids`, except at unknown tokens and after them."""
    encoded = theirs(texts, add_special_tokens=False)
    for number, (ids, continues) in enumerate(ours.encode_words(texts)):
        assert ids.tolist() == encoded["input_ids"][number]
        # The class of ESM is written in Python, and knows no words: every token is one.
        words = encoded.word_ids(number) if theirs.is_fast else range(len(ids))
        known = ids != ours.unknown_token_id
        both = known[1:] & known[:-1]
        expected = np.diff(np.array(words, np.int64)) == 0
        np.testing.assert_array_equal(continues[1:][both], expected[both], texts[number])


@pytest.mark.parametrize("name", MADE)
def test_ids_and_frames_are_those_of_transformers(
    name: str, texts: list[str], shared_data: Path, tmp_path: Path
) -> None:
    folder = MADE[name](tmp_path / "source", shared_data)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    roles = {role: getattr(theirs, role) for role in ours.roles.settings}
    roles["sep_token"] = roles["sep_token"] or theirs.eos_token
    assert roles == ours.roles.settings
    assert_same_ids(ours, theirs, texts)
    assert_same_frames(ours, theirs)
    # Literal special tokens are ordinary text, which never has their ids.
    special = np.array([ours.pad_token_id, ours.cls_token_id, ours.sep_token_id, ours.mask_token_id])
    assert not np.isin(np.concatenate(ours.encode_batch(texts)), special).any()
    assert_same_words(ours, theirs, texts[NUM_ODD::5])
    ours.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.fingerprint, again.frame) == (ours.fingerprint, ours.frame)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert_same_ids(ours, saved, texts[::7])
    assert_same_frames(ours, saved)


@pytest.mark.parametrize("name", ["small XLM-R", "small CamemBERT", "ALBERT", "cased ALBERT", "MPNet"])
def test_files_that_transformers_saved(
    name: str, texts: list[str], shared_data: Path, tmp_path: Path
) -> None:
    """Folders with a `tokenizer.json`, as most of the published ones are today."""
    folder = MADE[name](tmp_path / "source", shared_data)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    theirs, ours = (
        read(tmp_path / "again") for read in (transformers.AutoTokenizer.from_pretrained, Tokenizer.load)
    )
    assert_same_ids(ours, theirs, texts[::5])
    assert_same_frames(ours, theirs)
    # transformers 4 kept other steps of normalization in the file, which the class of transformers 5 leaves out.
    file = tmp_path / "again" / "tokenizer.json"
    content = json.loads(file.read_text())
    if content["model"]["type"] == "Unigram":
        steps = [content["normalizer"], {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}]
        content["normalizer"] = {"type": "Sequence", "normalizers": [step for step in steps if step]}
        file.write_text(json.dumps(content))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
        assert_same_ids(Tokenizer.load(tmp_path / "again"), theirs, texts[::5])


@pytest.mark.parametrize(
    "settings",
    [
        {"add_prefix_space": False},
        {"mask_token": "<MASK>", "additional_special_tokens": ["<ent>", "lake"]},
        {"unk_token": {"content": "<s>", "__type": "AddedToken"}},
        {
            "extra_special_tokens": ["Utah"],
            "mask_token": {"content": "<mask>", "rstrip": True, "__type": "AddedToken"},
        },
        {"bos_token": "<b>", "cls_token": "<b>", "added_tokens_decoder": {}},
    ],
)
@pytest.mark.parametrize("name", ["small XLM-R", "small CamemBERT", "MPNet", "ESM"])
def test_settings_are_read_as_in_transformers(
    name: str, settings: dict[str, Any], texts: list[str], shared_data: Path, tmp_path: Path
) -> None:
    folder = MADE[name](tmp_path, shared_data)
    file = folder / "tokenizer_config.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | settings))
    try:
        ours = Tokenizer.load(folder)
    except InputError:
        if {"unk_token", "bos_token"} & settings.keys():
            return
        raise
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    some = [*texts[::9], "a lake<MASK> in <ent> Utah <mask> x", "lake Utah"]
    assert_same_ids(ours, theirs, some)
    assert_same_frames(ours, theirs)


@pytest.mark.parametrize("name", ["ALBERT", "small XLM-R", "small CamemBERT", "MPNet", "ESM"])
def test_a_list_in_the_special_tokens_map(
    name: str, texts: list[str], shared_data: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """transformers ignores it beside a SentencePiece model; then there is a warning."""
    folder = MADE[name](tmp_path, shared_data)
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["[E1]"]}))
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert_same_ids(ours, theirs, [*texts[::20], "a [E1] lake"])
    ignored = [
        str(each.message) for each in recwarn if "are ignored, as in transformers 5" in str(each.message)
    ]
    assert bool(ignored) == (theirs.convert_tokens_to_ids("[E1]") == theirs.unk_token_id)
