"""A name table, read in both directions."""

from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.families.names import Endings, Row
from mlm_jax.formats.name_table import Tensor, parts_in, places, read_params, write_params
from mlm_jax.parallel.weights import Weight

TRANSPOSED = Endings(kernel=".w", bias=".b", scale=".g", offset=".b", layout="out_in")
FLAT = TRANSPOSED._replace(layout="flat")
ROWS = (
    *TRANSPOSED.linear("l{layer}.q", "encoder/layers/attention/query"),
    *FLAT.linear("l{layer}.o", "encoder/layers/attention/output"),
    *FLAT.norm("norm", "encoder/embeddings/norm"),
    Row("unused", "head/bias"),
)
WEIGHTS = (
    Weight("encoder/layers/attention/query/kernel", (3, 6, 2, 4), ("layers", "embed", "heads", "head_dim")),
    Weight("encoder/layers/attention/query/bias", (3, 2, 4), ("layers", "heads", "head_dim")),
    Weight("encoder/layers/attention/output/kernel", (3, 2, 4, 6), ("layers", "heads", "head_dim", "embed")),
    Weight("encoder/layers/attention/output/bias", (3, 6), ("layers", "embed")),
    Weight("encoder/embeddings/norm/scale", (6,), ("embed",)),
    Weight("encoder/embeddings/norm/bias", (6,), ("embed",)),
)
DECLARED = {weight.path: weight for weight in WEIGHTS}


def tensors() -> dict[str, Tensor]:
    random = np.random.RandomState(0)
    arrays = {name: random.standard_normal(p.foreign_shape) for name, p in places(ROWS, DECLARED).items()}
    return {name: Tensor(array.shape, lambda array=array: array) for name, array in arrays.items()}


def test_layouts() -> None:
    table = places(ROWS, DECLARED)
    assert len(table) == 3 * 4 + 2
    assert table["l2.q.w"].foreign_shape == (8, 6)
    assert table["l2.o.w"].foreign_shape == (8, 6)
    assert table["l0.q.b"].foreign_shape == (8,)
    ours = np.arange(48).reshape(6, 2, 4)
    there = table["l2.q.w"].to_foreign(ours)
    assert there[5, 3] == ours[3, 1, 1]
    np.testing.assert_array_equal(table["l2.q.w"].from_foreign(there), ours)


def test_round_trip() -> None:
    source = tensors()
    params = read_params(Path("there"), ROWS, DECLARED, source)
    back = dict(write_params(ROWS, DECLARED, params))
    assert back.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(back[name], tensor.read())
        assert back[name].flags.c_contiguous


def test_a_parameter_without_a_row_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"no row for \['encoder/extra'\]"):
        places(ROWS, DECLARED | {"encoder/extra": Weight("encoder/extra", (1,), ("embed",))})


def test_layers_are_named_as_the_library_names_them() -> None:
    table = places(ROWS, DECLARED, layer_name=lambda layer: f"<{layer}>")
    assert {name for name in table if name.endswith("q.w")} == {"l<0>.q.w", "l<1>.q.w", "l<2>.q.w"}


def test_parts_are_those_with_a_tensor() -> None:
    assert parts_in(ROWS, {}) == ["encoder"]
    assert parts_in(ROWS, {"unused": 0, "unknown": 0}) == ["encoder", "head"]


def test_layers_of_two_dtypes_are_rejected() -> None:
    mixed = tensors()
    mixed["l1.q.b"] = Tensor((8,), lambda: np.zeros(8, np.float16))
    with pytest.raises(InputError, match=r"l1\.q\.b is float16: must be float64"):
        read_params(Path("there"), ROWS, DECLARED, mixed)
