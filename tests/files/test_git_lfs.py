"""Pointers of Git LFS, which a clone without it has in place of large files, are named in every format."""

from pathlib import Path

import pytest

from mlm_jax.corpus.documents import read_documents
from mlm_jax.errors import InputError
from mlm_jax.store.loading import load_model
from mlm_jax.text.tokenizer import Tokenizer
from tests.formats.folders import hugging_face_folder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 440473133\n"


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "config.json"])
def test_a_pointer_in_a_model_folder_is_named(name: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"{name}: is a pointer of Git LFS .* run `git lfs pull`"):
        load_model(folder)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_pointer_is_no_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"{name}: is a pointer of Git LFS"):
        list(read_documents([str(tmp_path / name)]))


def test_a_pointer_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"tokenizer\.json: is a pointer of Git LFS"):
        Tokenizer.load(tmp_path)
