"""Values that are no weights, and files that would expand."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlm_jax.errors import InputError
from mlm_jax.formats import hugging_face
from mlm_jax.formats.model_folder import read_model_folder, write_model_folder
from mlm_jax.formats.tensor_checks import check_expansion, check_weight
from tests.formats.folders import hugging_face_folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_only_finite_numbers_are_weights(dtype: Any) -> None:
    largest = ml_dtypes.finfo(dtype).max if dtype != np.float64 else np.finfo(np.float32).max
    array = np.array([[0.0, -0.0, 1e-30], [largest, -largest, 1.0]]).astype(dtype)
    assert check_weight("file", "name", array) is array
    for value in (np.nan, np.inf, -np.inf):
        array[1, 2] = value
        with pytest.raises(InputError, match=r"file: tensor name has 1 values that are not finite .* of 6"):
            check_weight("file", "name", array)


def test_float64_beyond_float32_is_no_weight() -> None:
    with pytest.raises(InputError, match="tensor name has 1 values that are not finite float32"):
        check_weight("file", "name", np.array([1e300, 1.0]))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64, object])
def test_other_dtypes_are_no_weights(dtype: Any) -> None:
    with pytest.raises(
        InputError, match=f"tensor name is {np.dtype(dtype)}: weights must be float32, float16"
    ):
        check_weight("file", "name", np.ones(3, dtype))


def test_files_that_would_expand_are_rejected(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))
    check_expansion(file, [(1000, 500), (1000,)])
    with pytest.raises(InputError, match="its 1,000 bytes would expand to 10,000,000,000 numbers"):
        check_expansion(file, [(100_000, 100_000)])


@pytest.mark.parametrize("value", [np.nan, 1])
def test_every_format_names_the_tensor(value: float, tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source")
    (tmp_path / "ours").mkdir()
    write_model_folder(tmp_path / "ours", hugging_face.read(source).model)
    name = {source: "bert.encoder.layer.1.output.dense.bias", tmp_path / "ours": "head/bias"}
    for folder, read in ((source, hugging_face.read), (tmp_path / "ours", read_model_folder)):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        broken = tensors[name[folder]].copy()
        broken[3] = value
        dtype = np.int32 if value == 1 else np.float32
        save_file(tensors | {name[folder]: broken.astype(dtype)}, file)
        with pytest.raises(InputError, match=f"tensor {name[folder]} (has 1 values|is int32)"):
            read(folder)
