"""A table read in both directions."""

from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.formats.name_table import Row, Tensor, linear, norm, places, read_params, write_params

ROWS = (
    *linear("l{layer}.q", "encoder/layers/attention/query", weight=".w", bias=".b", layout="out_in"),
    *linear("l{layer}.o", "encoder/layers/attention/output", weight=".w", bias=".b", layout="in_out"),
    *norm("norm", "encoder/norm", scale=".g", bias=".b"),
    Row("unused", "head/bias"),
)
SHAPES = {
    "encoder/layers/attention/query/kernel": (3, 6, 2, 4),
    "encoder/layers/attention/query/bias": (3, 2, 4),
    "encoder/layers/attention/output/kernel": (3, 2, 4, 6),
    "encoder/layers/attention/output/bias": (3, 6),
    "encoder/norm/scale": (6,),
    "encoder/norm/bias": (6,),
}


def tensors() -> dict[str, Tensor]:
    random = np.random.RandomState(0)
    arrays = {name: random.standard_normal(p.foreign_shape) for name, p in places(ROWS, SHAPES).items()}
    return {name: Tensor(array.shape, lambda array=array: array) for name, array in arrays.items()}


def test_layouts() -> None:
    table = places(ROWS, SHAPES)
    assert len(table) == 3 * 4 + 2
    assert table["l2.q.w"].foreign_shape == (8, 6)
    assert table["l2.o.w"].foreign_shape == (8, 6)
    assert table["l0.q.b"].foreign_shape == (8,)
    ours = np.arange(48).reshape(6, 2, 4)
    there = table["l2.q.w"].to_foreign(ours)
    assert there[5, 3] == ours[3, 1, 1]
    np.testing.assert_array_equal(table["l2.q.w"].from_foreign(there), ours)


def test_in_and_out() -> None:
    source = tensors()
    params = read_params(Path("there"), ROWS, SHAPES, source)
    back = dict(write_params(ROWS, params))
    assert back.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(back[name], tensor.read())
        assert back[name].flags.c_contiguous


def test_a_parameter_without_a_row_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"no row for \['encoder/extra'\]"):
        places(ROWS, SHAPES | {"encoder/extra": (1,)})


def test_layers_of_two_dtypes_are_refused() -> None:
    mixed = tensors()
    mixed["l1.q.b"] = Tensor((8,), lambda: np.zeros(8, np.float16))
    with pytest.raises(InputError, match=r"l1\.q\.b is float16: must be float64"):
        read_params(Path("there"), ROWS, SHAPES, mixed)
