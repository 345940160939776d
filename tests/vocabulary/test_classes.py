"""Classes of transformers other than BERT's, without transformers: small folders, and what is rejected."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer

PIECES = [
    ("▁", -2.0),
    ("▁lake", -3.0),
    ("s", -7.2222442626953125),
    ("▁in", -3.2),
    ("l", -6.0),
    ("a", -6.0),
    (".", -4.0),
]
RESIDUES = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGV", "AG", "<null_1>", "<mask>"]


def unigram(folder: Path, class_name: str = "XLMRobertaTokenizer", first: int = 4, **settings: Any) -> Path:
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")[:first]]
    entries = [*special, *PIECES, ("<mask>", 0.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(entries, unk_id=0))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name, **settings}))
    return folder


def esm(folder: Path, entries: list[str] = RESIDUES, **settings: Any) -> Path:
    (folder / "vocab.txt").write_text("\n".join(entries))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer", **settings}))
    return folder


def pieces(tokenizer: Tokenizer, text: str, **options: Any) -> list[str | None]:
    return [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text, **options).tolist()]


def test_unigram_is_rebuilt_as_its_class_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(unigram(tmp_path))
    assert pieces(tokenizer, "lakes  in\nlal.☃") == ["▁lake", "s", "▁in", "▁", "l", "a", "l", ".", "<unk>"]
    assert pieces(tokenizer, "<mask>lake", parse_special_tokens=True) == ["<mask>", "▁lake"]
    assert pieces(tokenizer, "<mask>")[1:] != ["<mask>"]
    assert (tokenizer.roles.cls_token, tokenizer.roles.pad_token) == ("<s>", "<pad>")
    assert (tokenizer.frame.between, tokenizer.frame.second_segment) == ((2, 2), 0)
    bare = Tokenizer.load(unigram(tmp_path, add_prefix_space=False))
    assert pieces(bare, "lal la") == ["l", "a", "l", "l", "a"]


def test_a_saved_unigram_has_its_fingerprint(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(unigram(tmp_path))
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.fingerprint, again.roles, again.frame) == (
        tokenizer.fingerprint,
        tokenizer.roles,
        tokenizer.frame,
    )


def test_entries_of_esm_are_found_wherever_they_occur(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(esm(tmp_path))
    assert pieces(tokenizer, "LAG  V") == ["L", "AG", "V"]
    assert pieces(tokenizer, "Lxy#\x1cxV") == ["L", "<unk>", "<unk>", "V"]
    assert pieces(tokenizer, "L<mask>V") == ["L", "<unk>", "V"]
    assert pieces(tokenizer, "L<mask>V", parse_special_tokens=True) == ["L", "<mask>", "V"]
    assert (tokenizer.roles.cls_token, tokenizer.roles.sep_token) == ("<cls>", "<eos>")
    assert tokenizer.frame.between == (2,)
    # The class of transformers reads nothing else.
    (tmp_path / "tokenizer.json").write_text("{}")
    assert pieces(Tokenizer.load(tmp_path), "LA") == ["L", "A"]


def test_names_of_special_tokens_are_those_of_the_files(tmp_path: Path) -> None:
    entries = ["<pad>", "<unk>", "<a>", "<b>", "[MASK]", "lake", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(entries))
    roles = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<a>", "sep_token": "<b>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **roles}))
    tokenizer = Tokenizer.load(tmp_path)
    assert pieces(tokenizer, "lakes sea") == ["lake", "##s", "<unk>"]
    assert (tokenizer.frame.between, tokenizer.frame.second_segment) == ((3,), 1)
    with pytest.raises(
        InputError, match=r"its special tokens are <pad>, <unk>, <a>, <b>, \[MASK\]: must be \[PAD\]"
    ):
        tokenizer.bert_settings()
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").roles == tokenizer.roles


@pytest.mark.parametrize(
    ("class_name", "first", "message"),
    [
        ("XLMRobertaTokenizer", 3, r"id 3 is '▁': must be '<unk>', because XLMRobertaTokenizer"),
        ("AlbertTokenizer", 4, r"id 1 is '<pad>': must be '<unk>'"),
        ("EsmTokenizer", 4, r"its class is EsmTokenizer, which needs a vocab\.txt"),
        ("BertTokenizer", 4, "is not BERT's WordPiece, but its class is BertTokenizer"),
        ("RobertaTokenizer", 4, "has no merges, but its class is RobertaTokenizer"),
        ("T5Tokenizer", 4, "its class is T5Tokenizer, which is not supported; expected BertTokenizer"),
    ],
)
def test_classes_that_cannot_read_the_file(tmp_path: Path, class_name: str, first: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tokenizer.load(unigram(tmp_path, class_name, first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": {"a": 1}}}, "has no pieces with scores"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "has no pieces with scores"),
        ({"model": None}, "has no pieces with scores"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
            "precompiled_charsmap is not base64",
        ),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "not a Unigram model"),
        ({"normalizer": {"type": "Sequence", "normalizers": 3}}, "its normalizer is damaged"),
        ({"normalizer": [1]}, "its normalizer is damaged"),
    ],
)
def test_damaged_pieces_are_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = unigram(tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("unknown", "message"), [(None, "its unk_id is None, None"), (0, "its unk_id is 0, '<s>'")]
)
def test_unknown_piece_of_a_file_that_is_read_as_it_is(
    tmp_path: Path, unknown: int | None, message: str
) -> None:
    roles = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    file = unigram(tmp_path, "PreTrainedTokenizerFast", unk_token="<unk>", **roles) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["unk_id"] = unknown
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{message}: must be that of '<unk>'"):
        Tokenizer.load(tmp_path)
    content["model"]["unk_id"] = 3
    file.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).unknown_token_id == 3


def test_vocabulary_of_esm_without_its_unknown_token(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no '<unk>'"):
        Tokenizer.load(esm(tmp_path, ["<cls>", "<pad>", "<eos>", "L", "<mask>"]))


def test_a_sentencepiece_model_needs_a_class_and_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(InputError, match=r'write \{"tokenizer_class": "XLMRobertaTokenizer"\}, Camembert'):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"need sentencepiece: pip install 'mlm-jax\[sentencepiece\]'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xff\xff", "not a SentencePiece model"),
        (b"", "has no pieces"),
        # One piece, and a trainer_spec with model_type 2.
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x02", "come from merges or words"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    ],
)
def test_other_files_are_no_sentencepiece_models(tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)
