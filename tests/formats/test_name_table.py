"""A name table, read in both directions."""

from pathlib import Path

import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.families.names import Endings, Row
from mlm_jax.formats.name_table import Tensor, foreign_tensors, parts_in, read_params, write_params
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
    foreign = foreign_tensors(ROWS, DECLARED)
    arrays = {name: random.standard_normal(one.shape) for name, one in foreign.items()}
    return {name: Tensor(array.shape, lambda array=array: array) for name, array in arrays.items()}


def test_layouts() -> None:
    table = foreign_tensors(ROWS, DECLARED)
    assert len(table) == 3 * 4 + 2
    assert table["l2.q.w"].shape == (8, 6)
    assert table["l2.o.w"].shape == (8, 6)
    assert table["l0.q.b"].shape == (8,)
    ours = np.arange(48).reshape(6, 2, 4)
    (place,) = table["l2.q.w"].places
    there = place.to_foreign(ours)
    assert there[5, 3] == ours[3, 1, 1]
    np.testing.assert_array_equal(place.from_foreign(there), ours)


def test_rows_of_one_name_are_the_parts_of_one_tensor() -> None:
    path = "encoder/layers/attention/key/kernel"
    fewer = Weight(path, (3, 6, 1, 4), ("layers", "embed", "heads", "head_dim"))
    rows, declared = (*ROWS, Row("l{layer}.q.w", path, "out_in")), DECLARED | {path: fewer}
    source = tensors()
    joint = np.arange(12.0 * 6).reshape(12, 6)
    source |= {f"l{layer}.q.w": Tensor((12, 6), lambda layer=layer: joint + layer) for layer in range(3)}
    params = read_params(Path("there"), rows, declared, source)
    attention = params["encoder"]["layers"]["attention"]
    np.testing.assert_array_equal(attention["query"]["kernel"][1].reshape(6, 8).T, joint[:8] + 1)
    np.testing.assert_array_equal(attention["key"]["kernel"][1].reshape(6, 4).T, joint[8:] + 1)
    back = dict(write_params(rows, declared, params))
    np.testing.assert_array_equal(back["l2.q.w"], joint + 2)


def test_a_layer_without_a_tensor_has_ones() -> None:
    rows = tuple(row._replace(first_layer=1) if row.name == "l{layer}.o.b" else row for row in ROWS)
    source = tensors()
    del source["l0.o.b"]
    params = read_params(Path("there"), rows, DECLARED, source)
    bias = params["encoder"]["layers"]["attention"]["output"]["bias"]
    np.testing.assert_array_equal(bias[0], np.ones(6))
    np.testing.assert_array_equal(bias[1], source["l1.o.b"].read())
    assert dict(write_params(rows, DECLARED, params)).keys() == source.keys()
    with pytest.raises(InputError, match=r"unknown tensor.*l0\.o\.b|l0\.o\.b"):
        read_params(Path("there"), rows, DECLARED, tensors())


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
        foreign_tensors(ROWS, DECLARED | {"encoder/extra": Weight("encoder/extra", (1,), ("embed",))})


def test_layers_are_named_as_the_library_names_them() -> None:
    table = foreign_tensors(ROWS, DECLARED, layer_name=lambda layer: f"<{layer}>")
    assert {name for name in table if name.endswith("q.w")} == {"l<0>.q.w", "l<1>.q.w", "l<2>.q.w"}


def test_parts_are_those_with_a_tensor() -> None:
    assert parts_in(ROWS, {}) == ["encoder"]
    assert parts_in(ROWS, {"unused": 0, "unknown": 0}) == ["encoder", "head"]


def test_layers_of_two_dtypes_are_rejected() -> None:
    mixed = tensors()
    mixed["l1.q.b"] = Tensor((8,), lambda: np.zeros(8, np.float16))
    with pytest.raises(InputError, match=r"l1\.q\.b is float16: must be float64"):
        read_params(Path("there"), ROWS, DECLARED, mixed)
