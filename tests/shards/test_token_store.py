"""The shard format round-trips, and every kind of damage is reported."""

import itertools
import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError
from mlm_jax.preparation.prepare import prepare
from mlm_jax.shards.manifest import ShardRecord, content_fingerprint
from mlm_jax.shards.shard_writer import shard_parts
from mlm_jax.shards.token_store import TokenStore, open_shards
from mlm_jax.text.encode import EncodedBlock, encode_documents, token_dtype
from mlm_jax.text.tokenizer import Tokenizer

WORDS = [
    "the",
    "tower",
    "stands",
    "in",
    "a",
    "city",
    "of",
    "rivers",
    "and",
    "bridges",
    "where",
    "people",
    "walk",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SEP = 3
DOCUMENTS = [" ".join(np.random.default_rng(i).choice(WORDS, 1 + i % 40)) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(VOCABULARY))
    return Tokenizer.load(file)


@pytest.fixture
def prepared(tmp_path, tokenizer):
    (tmp_path / "corpus.txt").write_text("\n".join(DOCUMENTS))
    prepare([str(tmp_path / "corpus.txt")], tokenizer, tmp_path / "data", shard_tokens=1000)
    return tmp_path / "data"


def documents_of(store: TokenStore) -> list[list[int]]:
    return [
        shard.tokens[start:stop].tolist()
        for shard in store.shards
        for start, stop in zip(shard.document_offsets, shard.document_offsets[1:], strict=False)
    ]


@pytest.mark.parametrize("separator", ["sep", "none"])
def test_a_store_holds_the_ids_of_all_documents(tmp_path, tokenizer, separator):
    ending = [SEP] if separator == "sep" else []
    expected = [[*tokenizer.encode(document).tolist(), *ending] for document in DOCUMENTS]
    (tmp_path / "corpus.txt").write_text("\n".join(DOCUMENTS))
    prepare(
        [str(tmp_path / "corpus.txt")], tokenizer, tmp_path / "data", separator=separator, shard_tokens=1000
    )
    for store in (
        open_shards(tmp_path / "data"),
        TokenStore.from_documents(iter(DOCUMENTS), tokenizer, separator=separator, shard_tokens=1000),
    ):
        assert documents_of(store) == expected
        assert store.num_documents == len(DOCUMENTS)
        assert store.num_tokens == sum(map(len, expected))
        assert store.separator == separator
        assert store.vocabulary_size == tokenizer.vocabulary_size
        assert store.tokenizer_fingerprint == tokenizer.fingerprint
        assert len(store.shards) > 1
        for shard in store.shards[:-1]:
            # A shard ends with the document that brings it to the limit.
            assert shard.document_offsets[-2] < 1000 <= shard.num_tokens
        for shard in store.shards:
            assert shard.tokens.dtype == np.uint16
            assert shard.document_offsets.dtype == np.uint64
            assert shard.tokens.shape == (shard.num_tokens,)
            assert shard.document_offsets.shape == (shard.num_documents + 1,)


def test_fingerprints_in_memory_and_on_disk_are_equal(prepared, tokenizer):
    on_disk = open_shards(prepared)
    assert (
        TokenStore.from_documents(DOCUMENTS, tokenizer, shard_tokens=1000).fingerprint == on_disk.fingerprint
    )
    others = [
        TokenStore.from_documents(DOCUMENTS[:-1], tokenizer, shard_tokens=1000),
        TokenStore.from_documents(DOCUMENTS[::-1], tokenizer, shard_tokens=1000),
        TokenStore.from_documents(DOCUMENTS, tokenizer, shard_tokens=1500),
        TokenStore.from_documents(DOCUMENTS, tokenizer, shard_tokens=1000, separator="none"),
    ]
    assert len({on_disk.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_opening_maps_nothing_and_pickling_copies_nothing(prepared):
    store = open_shards(prepared)
    assert not any("tokens" in vars(shard) for shard in store.shards)
    assert isinstance(store.shards[0].tokens, np.memmap)
    assert store.shards[0].tokens is store.shards[0].tokens
    pickled = pickle.dumps(store)
    assert len(pickled) == len(pickle.dumps(open_shards(prepared)))
    again = pickle.loads(pickled)
    assert documents_of(again) == documents_of(store)
    assert again.fingerprint == store.fingerprint


def test_the_tokenizer_is_saved_with_the_shards(prepared, tokenizer):
    assert Tokenizer.load(prepared / "tokenizer").fingerprint == tokenizer.fingerprint


def test_token_type_depends_on_the_vocabulary_size():
    assert [token_dtype(size).str for size in (2, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]


def test_a_large_vocabulary_takes_four_bytes_per_token(tmp_path):
    vocabulary = [*VOCABULARY, *(f"w{i}" for i in range(70_000))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = Tokenizer.load(tmp_path)
    (tmp_path / "a.txt").write_text("the w69999")
    prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "data")
    (shard,) = open_shards(tmp_path / "data").shards
    assert shard.tokens.dtype == np.uint32
    assert shard.tokens.tolist() == [5, len(vocabulary) - 1, SEP]
    assert (tmp_path / "data" / "tokens-00000.bin").read_bytes() == np.array(shard.tokens, "<u4").tobytes()


def test_documents_without_tokens_are_left_out(tokenizer):
    store = TokenStore.from_documents(["\u200b", "the city", "", "\x00", "a"], tokenizer)
    assert documents_of(store) == [[5, 10, SEP], [9, SEP]]
    with pytest.raises(InputError, match="none has a token"):
        TokenStore.from_documents(["", " "], tokenizer)


def test_from_documents_rejects_other_types(tokenizer):
    with pytest.raises(InputError, match="expected a list of strings, found one string"):
        TokenStore.from_documents("the city", tokenizer)
    with pytest.raises(InputError, match="document 1: expected a string, found int"):
        TokenStore.from_documents(["the", 3], tokenizer)


def test_verification_accepts_a_prepared_folder(prepared):
    assert verify_shards(prepared).fingerprint == open_shards(prepared).fingerprint


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents-00000.bin"])
def test_verification_finds_a_flipped_bit(prepared, name):
    data = bytearray((prepared / name).read_bytes())
    data[len(data) // 2] ^= 1
    (prepared / name).write_bytes(data)
    open_shards(prepared)
    with pytest.raises(InputError, match=f"{name}: damaged"):
        verify_shards(prepared)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents-00000.bin"])
def test_missing_or_truncated_shards_are_rejected(prepared, name):
    data = (prepared / name).read_bytes()
    for content, expected in [
        (data[:-1], "bytes, expected"),
        (data + b"x", "bytes, expected"),
        (b"", "0 bytes"),
    ]:
        (prepared / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: .*{expected}"):
            open_shards(prepared)
    (prepared / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        open_shards(prepared)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens_sha256", "/etc/passwd"),
        ("documents_sha256", "../../victim"),
        ("words_sha256", "../../victim"),
        ("tokens_sha256", "A" * 64),
        ("tokens_sha256", "0" * 64 + "\n"),
        ("tokens_sha256", None),
        ("folder", ".."),
        ("folder", "/etc"),
        ("folder", "part-0-of-1/.."),
        ("tokens", -1),
        ("tokens", 2**60),
        ("documents", 1.5),
        ("documents", True),
    ],
)
def test_records_that_become_paths_or_sizes_are_checked(prepared, field, value):
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["shards"][0][field] = value
    records = [ShardRecord(**record) for record in manifest["shards"]]
    identity = (manifest["separator"], manifest["vocabulary_size"], manifest["tokenizer_fingerprint"])
    manifest["fingerprint"] = content_fingerprint(*identity, records)
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"manifest\.json: damaged: (sha256|{field}) .*: must be"):
        open_shards(prepared)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", 10**9), ("documents", 1), ("characters", -1), ("skipped", "0"), ("more", None)],
)
def test_totals_are_those_of_the_shards(prepared, name, value):
    """The fingerprint does not cover them, and the length of a run follows from them."""
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["totals"][name] = value
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"manifest\.json: damaged: totals: {name} .*: must be"):
        open_shards(prepared)


def test_invalid_manifests_are_rejected(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())

    def refusal(content: object) -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (prepared / "manifest.json").write_text(text)
        with pytest.raises(InputError) as caught:
            open_shards(prepared)
        assert str(caught.value).startswith(str(prepared / "manifest.json"))
        return str(caught.value)

    assert "format version 99" in refusal({**manifest, "version": 99})
    assert "damaged" in refusal("{")
    assert "damaged" in refusal("[]")
    assert "damaged" in refusal({"version": 1})
    assert "damaged" in refusal({**manifest, "shards": [{"documents": 3}]})
    assert "damaged" in refusal({**manifest, "shards": manifest["shards"][:1]})
    assert "damaged" in refusal({**manifest, "separator": "none"})
    assert "token_dtype 'uint32': must be 'uint16'" in refusal({**manifest, "token_dtype": "uint32"})


def test_folders_without_a_preparation_are_rejected(tmp_path, prepared):
    with pytest.raises(InputError, match="no prepared data here"):
        open_shards(tmp_path / "missing")
    (prepared / "manifest.json").rename(prepared / "progress.json")
    with pytest.raises(InputError, match="incomplete; rerun the same"):
        open_shards(prepared)
    shutil.rmtree(prepared)
    prepared.mkdir()
    with pytest.raises(InputError, match="no prepared data here"):
        open_shards(prepared)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1),
    cuts=st.sets(st.integers(1, 40)),
    shard_tokens=st.integers(1, 50),
)
def test_division_into_shards_does_not_depend_on_blocks(lengths, cuts, shard_tokens):
    def divide(cuts: list[int]) -> list[tuple[list[int], list[int]]]:
        tokens = np.arange(sum(lengths), dtype=np.uint16)
        ends = np.cumsum([0, *lengths])
        bounds = [0, *(cut for cut in cuts if cut < len(lengths)), len(lengths)]
        blocks = [
            EncodedBlock(tokens[ends[a] : ends[b]], np.array(lengths[a:b]), np.array(lengths[a:b]))
            for a, b in itertools.pairwise(bounds)
        ]
        shards: list[tuple[list[int], list[int]]] = [([], [])]
        for part, closes in shard_parts(blocks, shard_tokens):
            shards[-1][0].extend(part.tokens.tolist())
            shards[-1][1].extend(part.document_lengths.tolist())
            if closes:
                shards.append(([], []))
        assert shards.pop() == ([], [])
        return shards

    shards = divide([])
    assert divide(sorted(cuts)) == shards
    assert [token for tokens, _ in shards for token in tokens] == list(range(sum(lengths)))
    assert [length for _, shard_lengths in shards for length in shard_lengths] == lengths
    for tokens, shard_lengths in shards[:-1]:
        assert len(tokens) == sum(shard_lengths)
        assert len(tokens) - shard_lengths[-1] < shard_tokens <= len(tokens)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_blocks_come_in_order(tokenizer, monkeypatch, workers):
    monkeypatch.setattr("mlm_jax.text.encode._BLOCK_CHARACTERS", 100)
    tokens = np.concatenate(
        [block.tokens for block in encode_documents(DOCUMENTS, tokenizer, workers=workers)]
    )
    expected = [token for document in DOCUMENTS for token in [*tokenizer.encode(document), SEP]]
    assert tokens.tolist() == expected


def test_few_blocks_are_read_ahead(tokenizer, monkeypatch):
    monkeypatch.setattr("mlm_jax.text.encode._BLOCK_CHARACTERS", 1)
    read = 0

    def documents():
        nonlocal read
        for document in DOCUMENTS:
            read += 1
            yield document

    blocks = encode_documents(documents(), tokenizer, workers=2)
    next(blocks)
    assert read <= 6
    blocks.close()


def test_documents_of_unknown_words_are_reported(tokenizer, recwarn):
    TokenStore.from_documents(DOCUMENTS, tokenizer)
    assert not [warning for warning in recwarn if "unknown" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"documents: 100\.0% of the tokens are unknown .* such as 'ЖЖЖ'"):
        TokenStore.from_documents(["ЖЖЖ ЖЖЖ"], tokenizer)
