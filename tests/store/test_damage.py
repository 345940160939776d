"""Folders that we write carry checksums: a flipped bit in any of their files is an error that names the file."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.files.checksums import CHECKSUMS_FILE, check_checksums, write_checksums
from mlm_jax.formats.model_folder import read_model_folder
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.loading import load_model
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.use.masked_lm import MaskedLM
from tests.formats.folders import hugging_face_folder


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))
    return hugging_face_folder(tmp_path / "source", "BertForMaskedLM")


def flip_a_bit(file: Path, seed: int) -> None:
    draw, data = random.Random(seed), bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def assert_every_flip_is_found(folder: Path) -> None:
    load_model(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for seed, file in enumerate(files):
        whole = file.read_bytes()
        flip_a_bit(file, seed)
        # A flip in the checksums is blamed on the file to which the line belongs.
        named = str(folder) if file.name == CHECKSUMS_FILE else str(file)
        with pytest.raises(InputError, match=re.escape(named)):
            load_model(folder)
        file.write_bytes(whole)
    # Checksums that are cut at the end of a line check nothing that follows.
    listing = folder / CHECKSUMS_FILE
    lines = listing.read_text().splitlines(keepends=True)
    for count in range(1, len(lines)):
        listing.write_text("".join(lines[:count]))
        with pytest.raises(InputError, match=r"not listed in mlm_jax\.sha256, which is therefore damaged"):
            load_model(folder)
    listing.write_text("".join(lines))
    load_model(folder)


@pytest.mark.parametrize("to", ["mlm_jax", "hugging_face", "keras_hub"])
def test_a_flipped_bit_in_any_file_of_a_conversion(
    to: conversion.FormatName, source: Path, tmp_path: Path
) -> None:
    request = Request(change_conventions=True, allow_random_pooler=True)
    convert(source, tmp_path / "out", to, request)
    assert_every_flip_is_found(tmp_path / "out")


def test_a_flipped_bit_in_any_file_of_a_saved_model(source: Path, tmp_path: Path) -> None:
    MaskedLM.from_preset(source).save(tmp_path / "out")
    assert_every_flip_is_found(tmp_path / "out")


def test_a_model_that_is_not_finite_is_not_saved(source: Path, tmp_path: Path) -> None:
    model = MaskedLM.from_preset(source)
    model.params["head"]["bias"] = model.params["head"]["bias"].at[3].set(np.nan)
    with pytest.raises(InputError, match="tensor head/bias has 1 values that are not finite"):
        model.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_edited_file_is_read_once_the_checksums_are_deleted(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "hugging_face")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_dropout_prob": 0.3}))
    with pytest.raises(
        InputError, match=rf"config\.json: damaged or edited: .*, delete {re.escape(CHECKSUMS_FILE)}"
    ):
        load_model(tmp_path / "out")
    (tmp_path / "out" / CHECKSUMS_FILE).unlink()
    assert load_model(tmp_path / "out").config.dropout_rate == 0.3


def test_weights_may_be_missing_only_where_they_are_not_needed(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "hugging_face")
    (tmp_path / "out" / "model.safetensors").unlink()
    load_model(tmp_path / "out", load_weights=False)
    with pytest.raises(InputError, match=r"model\.safetensors: missing, but listed in"):
        load_model(tmp_path / "out")
    flip_a_bit(tmp_path / "out" / "vocab.txt", 0)
    with pytest.raises(InputError, match=r"vocab\.txt: damaged"):
        load_model(tmp_path / "out", load_weights=False)


def test_sha256sum_reads_the_checksums(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a file").write_bytes(b"abc")
    write_checksums(tmp_path)
    assert (tmp_path / CHECKSUMS_FILE).read_text() == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  sub/a file\n"
    )
    check_checksums(tmp_path, complete=True)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", "a\0b", "a\\b"])
def test_checksums_are_of_files_in_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_FILE).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(InputError, match=f"{re.escape(CHECKSUMS_FILE)}:1: damaged: must be a sha256"):
        check_checksums(tmp_path, complete=False)


def test_a_model_with_spare_rows_converts_to_every_format_and_back(source: Path, tmp_path: Path) -> None:
    model = read_model_folder_with_fewer_entries(source, tmp_path)
    assert (model.config.vocabulary_size, model.tokenizer.vocabulary_size) == (211, 200)
    request = Request(change_conventions=True, allow_random_pooler=True)
    for to in ("hugging_face", "keras_hub"):
        certificate = convert(tmp_path / "ours", tmp_path / to, to, request)
        assert certificate["source"]["notes"] == [
            "11 of the 211 rows of the embedding table have no entry in the tokenizer; kept"
        ]
        assert certificate["target"]["vocabulary"] == {"rows": 211, "entries": 200}
        convert(tmp_path / to, tmp_path / f"{to}-back", "mlm_jax", request)
        back = read_model_folder(tmp_path / f"{to}-back")
        assert back.tokenizer.fingerprint == model.tokenizer.fingerprint
        assert back.params["head"]["bias"].tobytes() == model.params["head"]["bias"].tobytes()
        table = back.params["encoder"]["embeddings"]["token"]
        assert table.tobytes() == model.params["encoder"]["embeddings"]["token"].tobytes()


def read_model_folder_with_fewer_entries(source: Path, tmp_path: Path):
    lines = (source / "vocab.txt").read_text().splitlines(keepends=True)
    shutil.copytree(source, tmp_path / "fewer")
    (tmp_path / "fewer" / "vocab.txt").write_text("".join(lines[:200]))
    convert(tmp_path / "fewer", tmp_path / "ours", "mlm_jax")
    return read_model_folder(tmp_path / "ours")


def test_a_huge_list_of_checksums_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_FILE).touch()
    os.truncate(tmp_path / CHECKSUMS_FILE, 1 << 36)
    with pytest.raises(InputError, match="damaged: must be at most 17 MB"):
        check_checksums(tmp_path, complete=True)


def test_checksums_that_are_a_link_to_nothing_are_damaged(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "mlm_jax")
    (tmp_path / "out" / CHECKSUMS_FILE).unlink()
    (tmp_path / "out" / CHECKSUMS_FILE).symlink_to("nothing")
    with pytest.raises(InputError, match=r"mlm_jax\.sha256: damaged: must be a file"):
        load_model(tmp_path / "out")


def test_checksums_may_have_the_line_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    write_checksums(tmp_path)
    listing = tmp_path / CHECKSUMS_FILE
    listing.write_bytes(listing.read_bytes().replace(b"\n", b"\r\n"))
    check_checksums(tmp_path, complete=True)
    (tmp_path / "file").write_bytes(b"abd")
    with pytest.raises(InputError, match="file: damaged or edited"):
        check_checksums(tmp_path, complete=True)
