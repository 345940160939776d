"""Extended tokenizers and models beside transformers, with published vocabularies and real text."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlm_jax.__main__ import run_command
from mlm_jax.corpus.documents import read_documents
from mlm_jax.extension.kinds import kind_of, words_of
from mlm_jax.extension.new_words import Extended, extend, extend_with_costly
from mlm_jax.extension.word_counts import costly_words, count_chunks, count_words
from mlm_jax.store import conversion
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.masked_lm import MaskedLM

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

MODEL_FILE = "sentencepiece.bpe.model"
XLM_R = "tokenizers/xlm-roberta-base"
# The folder of a tokenizer, the model type that transformers reads it with, a text, and its number of documents.
CASES = [
    ("vocab/bert-base-uncased", "bert", "medquad", 300),
    ("vocab/bert-base-cased", "bert", "medquad", 300),
    ("vocab/bert-base-multilingual-cased", "bert", "gesetze-de", 24),
    ("tokenizers/distilbert-base-uncased", "distilbert", "medquad", 300),
    ("tokenizers/roberta-base", "roberta", "medquad", 300),
]
# A quarter of a million pieces.
LARGE = (XLM_R, "xlm-roberta", "gesetze-de", 24)
ODD = [
    "",
    " ",
    "\u200b\ufffd\x00",
    "x" * 120,
    "Absätze, Absatz-Absatz's",
    "[MASK] <mask> [unused3]",
    "\n\n\tautosomal  ",
]


def source_tokenizer(shared_data: Path, folder: str, scratch: Path) -> Tokenizer:
    if folder != XLM_R:
        return Tokenizer.load(shared_data / folder)
    # Only a SentencePiece model, whose pieces the class numbers.
    scratch.mkdir()
    (scratch / MODEL_FILE).symlink_to(shared_data / folder / MODEL_FILE)
    (scratch / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    return Tokenizer.load(scratch)


def documents(shared_data: Path, name: str, count: int) -> list[str]:
    return [*islice(read_documents([str(shared_data / f"corpora/{name}.jsonl.zst")]), count)]


def extended_with(tokenizer: Tokenizer, texts: list[str], count: int) -> Extended:
    kind = kind_of(tokenizer)
    words = count_words(count_chunks(texts), tokenizer)
    return extend_with_costly(
        "test", tokenizer, kind, costly_words(words, tokenizer, kind, min_count=2), count
    )


@pytest.mark.parametrize(("folder", "model_type", "corpus", "size"), [*CASES, LARGE])
def test_transformers_reads_text_alike(
    folder: str, model_type: str, corpus: str, size: int, shared_data: Path, tmp_path: Path
) -> None:
    texts = documents(shared_data, corpus, size // 2)
    old = source_tokenizer(shared_data, folder, tmp_path / "source")
    extended = extended_with(old, texts, 1200)
    assert len(extended.token_ids) > 300
    new = extended.tokenizer
    new.save(tmp_path / "new")
    (tmp_path / "new/config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    texts = [text for document in texts for text in document.split("\n")] + ODD
    for text, ids in zip(texts, new.encode_batch(texts), strict=True):
        if "mask" not in text.lower():
            assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    for word, token_id in extended.token_ids.items():
        assert theirs.convert_tokens_to_ids(word) == token_id


@pytest.mark.parametrize(
    ("folder", "model_type", "corpus", "size"), [*CASES, pytest.param(*LARGE, marks=pytest.mark.release)]
)
def test_other_words_keep_their_ids(
    folder: str, model_type: str, corpus: str, size: int, shared_data: Path, tmp_path: Path
) -> None:
    old = source_tokenizer(shared_data, folder, tmp_path / "source")
    extended = extended_with(old, documents(shared_data, corpus, size), 2000)
    words, new_words = [], tuple(extended.token_ids)
    joins = {i: [token.id for token in old.backend.model.tokenize(w)] for w, i in extended.token_ids.items()}
    for text in documents(shared_data, corpus, 2 * size)[size:] + documents(shared_data, "wiki-en-valid", 20):
        words += text.split()
    words = sorted(set(words))
    changed = 0
    before, after = (
        [*tokenizer.encode_batch([f" {w}" for w in words])] for tokenizer in (old, extended.tokenizer)
    )
    for word, ids, new_ids in zip(words, before, after, strict=True):
        inner = words_of(old, f" {word}")
        if old.kind == "BPE":
            expected = any(w in extended.token_ids for w in inner)
        elif old.kind == "Unigram":
            # Pieces are joined, wherever they stood at the beginning of a word, and nothing else changes.
            joined = [i for new_id in new_ids.tolist() for i in joins.get(new_id, [new_id])]
            expected = joined == ids.tolist()
            assert expected, word
        else:
            # The longest entry that a word begins with is taken, so words with the same beginning may change, too.
            expected = any(w.startswith(new_words) for w in inner)
        assert expected or ids.tolist() == new_ids.tolist(), word
        if any(w in extended.token_ids for w in inner):
            assert len(new_ids) < len(ids), word
            changed += 1
    assert changed > 100


@pytest.mark.release
def test_an_extended_xlm_r_is_read_alike_and_keeps_no_old_pieces(shared_data: Path, tmp_path: Path) -> None:
    """From a folder with only a SentencePiece model, which would be stale beside the new tokenizer."""
    old = source_tokenizer(shared_data, XLM_R, tmp_path / "source")
    random_folder(tmp_path / "source", "XLMRoberta", old)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "source" / name).unlink()
    (tmp_path / "words.txt").write_text("Glioblastom\nglioblastoma\ncovid-19\n")
    words = ["--tokens", f"{tmp_path}/words.txt"]
    run_command(["extend", f"{tmp_path}/source", *words, "--output", f"{tmp_path}/ours"])
    run_command(["convert", f"{tmp_path}/ours", f"{tmp_path}/theirs", "--to", "hugging_face"])
    assert not [*tmp_path.glob("ours/**/*.model"), *tmp_path.glob("theirs/**/*.model")]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ids = theirs("Das Glioblastom (covid-19), Glioblastome")["input_ids"]
    assert [i for i in ids if i >= old.vocabulary_size] == [old.vocabulary_size]
    assert theirs("covid-19 glioblastoma", add_special_tokens=False)["input_ids"] == [
        *(old.vocabulary_size + 2, old.vocabulary_size + 1),
    ]
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs")
    assert len(model.get_input_embeddings().weight) == old.vocabulary_size + 3


TOKENIZERS = {
    "Bert": "vocab/bert-base-uncased",
    "Albert": "vocab/bert-base-uncased",
    "Roberta": "tokenizers/roberta-base",
}


def random_folder(folder: Path, family: str, tokenizer: Tokenizer) -> torch.nn.Module:
    """Makes a folder of transformers with a small masked LM of realistic spread, and returns the model."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape |= {"vocab_size": tokenizer.vocabulary_size, "pad_token_id": tokenizer.pad_token_id}
    shape |= {"type_vocab_size": 1, "max_position_embeddings": 66} if "Roberta" in family else {}
    shape |= {"embedding_size": 8} if family == "Albert" else {}
    model = getattr(transformers, f"{family}ForMaskedLM")(getattr(transformers, f"{family}Config")(**shape))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model


@pytest.mark.parametrize(("family", "other"), [("Bert", "Roberta"), ("Roberta", "Bert")])
def test_a_moved_model_has_the_logits_of_transformers(
    family: str, other: str, shared_data: Path, tmp_path: Path
) -> None:
    """The conversion compares the logits; positions of RoBERTa count from the padding id of the new tokenizer."""
    old, new = (Tokenizer.load(shared_data / TOKENIZERS[name]) for name in (family, other))
    random_folder(tmp_path / "source", family, old)
    move = ["extend", f"{tmp_path}/source", "--tokenizer", str(shared_data / TOKENIZERS[other])]
    run_command([*move, "--output", f"{tmp_path}/ours"])
    run_command(["convert", f"{tmp_path}/ours", f"{tmp_path}/theirs", "--to", "hugging_face"])
    certificate = json.loads((tmp_path / "theirs/certificate.json").read_text())
    assert "transformers" in certificate["comparisons"]["target"]["library"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    text = "A lake, in Utah"
    assert theirs(text, add_special_tokens=False)["input_ids"] == new.encode(text).tolist()
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert (config["pad_token_id"], config["vocab_size"]) == (new.pad_token_id, new.vocabulary_size)
    before, after = (
        MaskedLM.from_preset(tmp_path / name).params["encoder"]["embeddings"]["token"]
        for name in ("source", "ours")
    )
    for pair in (("lake", "Ġlake"), (",", ","), ("##s", "s"), ("[MASK]", "<mask>")):
        entry, same = pair if family == "Bert" else pair[::-1]
        np.testing.assert_array_equal(after[new.token_to_id(same)], before[old.token_to_id(entry)])


@pytest.mark.parametrize("family", ["Bert", "Albert", "Roberta"])
def test_an_extended_model_has_the_logits_of_transformers(
    family: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "compared below"))
    old, source = Tokenizer.load(shared_data / TOKENIZERS[family]), tmp_path / "source"
    model = random_folder(source, family, old)
    (tmp_path / "words.txt").write_text("glioblastoma\nleiomyosarcoma\n")
    run_command(["extend", str(source), "--tokens", f"{tmp_path}/words.txt", "--output", f"{tmp_path}/ours"])
    run_command(["convert", f"{tmp_path}/ours", f"{tmp_path}/theirs", "--to", "hugging_face"])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    there, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    mask = theirs.mask_token
    text = f"a glioblastoma is {mask} than a leiomyosarcoma"
    rows = theirs(text, return_tensors="pt")
    pieces = rows["input_ids"][0].tolist()
    new = extend("test", old, ["glioblastoma", "leiomyosarcoma"])[0]
    assert [i for i in pieces if i in new.token_ids.values()] == [*new.token_ids.values()]
    with torch.no_grad():
        logits = there.eval()(**rows).logits[0, pieces.index(theirs.mask_token_id)]
        # The product of the new row with a hidden state is the mean of those of its pieces.
        row = model.get_input_embeddings().weight[old.encode(" glioblastoma")].mean(dim=0)
    first = next(iter(new.token_ids.values()))
    np.testing.assert_allclose(there.get_input_embeddings().weight[first].detach(), row, rtol=1e-5, atol=1e-7)
    best = MaskedLM.from_preset(tmp_path / "ours").fill_mask(text, top_k=3)
    probabilities = logits.softmax(-1).topk(3)
    assert [answer["token"] for answer in best] == probabilities.indices.tolist()
    np.testing.assert_allclose([answer["score"] for answer in best], probabilities.values, rtol=1e-4)
