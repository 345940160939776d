import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlm_jax.parallel.digest import array_digests, nonfinite


def digest(array: jax.Array) -> int:
    return array_digests({"array": array})["array"].bits


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]),
    data=st.data(),
)
def test_the_digest_detects_every_flipped_bit_and_exchange(
    seed: int, dtype: str, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        values = generator.integers(0, 2, 60, np.uint8)
    else:
        values = generator.integers(0, 256, 60 * jnp.dtype(dtype).itemsize, np.uint8)
    original = digest(jnp.asarray(values.view(dtype)).reshape(5, 12))
    first, second = data.draw(st.lists(st.integers(0, 59), min_size=2, max_size=2, unique=True))
    bit = 0 if dtype == "bool" else data.draw(st.integers(0, 8 * jnp.dtype(dtype).itemsize - 1))
    size = jnp.dtype(dtype).itemsize

    one = values.copy()
    one[first * size + bit // 8] ^= 1 << bit % 8
    assert digest(jnp.asarray(one.view(dtype)).reshape(5, 12)) != original

    both = one.copy()
    both[second * size + bit // 8] ^= 1 << bit % 8
    assert digest(jnp.asarray(both.view(dtype)).reshape(5, 12)) != original

    exchanged = values.copy().reshape(60, size)
    exchanged[[first, second]] = exchanged[[second, first]]
    if (exchanged != values.reshape(60, size)).any():
        assert digest(jnp.asarray(exchanged.reshape(-1).view(dtype)).reshape(5, 12)) != original


def test_arrays_with_nan_or_infinity_are_named() -> None:
    finite = jnp.full((4, 6), 3.4e38)
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    leaves = {
        "finite": finite,
        "nan": finite.at[3, 5].set(jnp.nan),
        "infinite": finite.at[0, 0].set(-jnp.inf),
        "narrow": finite.astype(jnp.bfloat16).at[1, 1].set(jnp.nan),
        "whole": jnp.arange(5),
        "empty": jnp.zeros((0, 3)),
        "bools": jnp.ones(3, bool),
    }
    assert sorted(nonfinite(array_digests(leaves))) == ["infinite", "nan", "narrow"]
    # One of eight devices holds the NaN.
    split = jax.device_put(jnp.ones(16).at[9].set(jnp.nan), NamedSharding(mesh, PartitionSpec("a")))
    assert nonfinite(array_digests({"split": split})) == ["split"]


def test_the_digest_detects_two_flipped_signs() -> None:
    """Where bits are only multiplied by odd numbers and added, the top bits of two elements cancel."""
    array = jax.random.normal(jax.random.key(0), (64,))
    assert len({digest(array), *(digest(array.at[jnp.array([0, i])].mul(-1)) for i in range(1, 64))}) == 64


def test_the_digest_does_not_depend_on_the_mesh() -> None:
    array = jax.random.normal(jax.random.key(0), (16, 8))
    digests = set()
    for shape, spec in (((8, 1), ("a", "b")), ((2, 4), ("b", "a")), ((1, 8), (None, "b")), ((1, 1), ())):
        mesh = jax.make_mesh(
            shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: shape[0] * shape[1]]
        )
        digests.add(digest(jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))))
    assert len(digests) == 1
