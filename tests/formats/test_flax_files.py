"""Weights of transformers' Flax classes: the tensors of torch, and one line for a damaged or hostile file."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from mlm_jax.errors import InputError
from mlm_jax.formats import hugging_face
from mlm_jax.formats.flax_files import FLAX_WEIGHTS_FILE, open_flax
from tests.formats.folders import hugging_face_folder, state_dict
from tests.formats.other_weights import write_flax
from tests.formats.test_hugging_face import ARCHITECTURES, assert_same_tensors, written


def flax_folder(folder: Path, architecture: str = "BertForMaskedLM", dtype: Any = np.float32) -> Path:
    hugging_face_folder(folder, architecture)
    (folder / "model.safetensors").unlink()
    state = {name: array.astype(dtype) for name, array in state_dict(architecture).items()}
    write_flax(state, folder / FLAX_WEIGHTS_FILE)
    return folder


def opened(file: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_flax(file, ExitStack()).items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_are_those_of_torch(architecture: str, dtype: Any, tmp_path: Path) -> None:
    reading = hugging_face.read(flax_folder(tmp_path / "in", architecture, dtype))
    assert reading.files == [tmp_path / "in" / FLAX_WEIGHTS_FILE]
    assert reading.notes == []
    state = {name: array.astype(dtype) for name, array in state_dict(architecture).items()}
    assert_same_tensors(written(reading, tmp_path / "out"), state)


def test_arrays_in_pieces_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flax divides arrays above 1 GiB."""
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 1000)
    write_flax(state_dict(), tmp_path / "x")
    assert b"__msgpack_chunked_array__" in (tmp_path / "x").read_bytes()
    assert_same_tensors(opened(tmp_path / "x"), state_dict())


def test_truncated_files_are_one_line(tmp_path: Path) -> None:
    file = flax_folder(tmp_path / "in") / FLAX_WEIGHTS_FILE
    whole = file.read_bytes()
    for cut in (0, 1, 1000, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"flax_model\.msgpack: damaged or truncated: "):
            hugging_face.read(tmp_path / "in")


ARRAY = np.ones(2, np.float32)
HOSTILE = {
    "no dict": ARRAY,
    "a list": {"a": [ARRAY]},
    "a number": {"a": {"step": 3}},
    "a scalar": {"a": np.float32(3)},
    "a number as a name": {1: ARRAY},
    "a number as an inner name": {"a": {1: ARRAY}},
    "a pickle": {"a": msgpack.ExtType(1, msgpack.packb(((2,), "O", b"\0" * 16)))},
    "another extension": {"a": msgpack.ExtType(7, b"x")},
    "fewer numbers than its shape": {
        "a": msgpack.ExtType(1, msgpack.packb(((1 << 40,), "float32", b"\0" * 16)))
    },
    "an unknown dtype": {"a": msgpack.ExtType(1, msgpack.packb(((2,), "float7", b"\0" * 16)))},
    "pieces without a shape": {"a": {"__msgpack_chunked_array__": True, "chunks": {"0": ARRAY}}},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_but_arrays_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(msgpack_serialize(HOSTILE[kind]))
    with pytest.raises(InputError, match=r"x: (refused: must contain nested dicts of arrays|damaged)"):
        opened(tmp_path / "x")


@pytest.mark.parametrize(
    "content",
    [b"\x81\xa1a" * 100_000, b"\x91" * 100_000, b"\xdd\x7f\xff\xff\xff" * 1000, b"\xdf\xff\xff\xff\xff"],
)
def test_nesting_without_end_and_huge_counts_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="x: damaged or truncated"):
        opened(tmp_path / "x")


def test_two_tensors_of_a_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(msgpack_serialize({"a": {"b": ARRAY}, "a/b": ARRAY}))
    with pytest.raises(InputError, match="x: tensor a/b exists twice"):
        opened(tmp_path / "x")


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="git lfs pull"):
        opened(tmp_path / "x")
