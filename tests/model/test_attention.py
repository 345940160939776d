"""Every implementation against the reference, what documents separate, and which implementation is chosen."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from mlm_jax.config import BertConfig, ComputeConfig, MeshConfig
from mlm_jax.errors import InputError
from mlm_jax.model import attention
from mlm_jax.model.attention import attend, choose_attention, xla_attention
from mlm_jax.model.bert import BertMaskedLM
from mlm_jax.model.kernels import cudnn_attention, splash_attention
from mlm_jax.sharding import make_mesh

splash = partial(splash_attention, interpret=True)
ON_A_GPU = any(device.platform == "gpu" for device in jax.devices())


def inputs_of(length: int = 128, heads: int = 2, dtype: str = "float32") -> list[Array]:
    """Queries, keys, values and what weighs the outputs, of four rows."""
    shape = (4, length, heads, 64)
    return [jax.random.normal(jax.random.key(number), shape, dtype) for number in range(4)]


def rows_of(length: int = 128) -> tuple[Array, Array]:
    """Padding and documents of four rows; one is all padding, one has none."""
    padding_mask = jnp.arange(length)[None] < jnp.array([length, length // 3, 0, length - 1])[:, None]
    ends = jax.random.bernoulli(jax.random.key(9), 8 / length, (4, length)).astype(jnp.int32)
    return padding_mask, jnp.cumsum(ends, axis=1) - ends


def outputs_and_gradients(
    function: Callable[..., Array], inputs: list[Array], padding_mask: Array, document_ids: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """Of the queries that have a key: nobody reads the others, whose gradients no kernel promises."""
    *heads, weights = inputs
    keys = padding_mask[:, None, :]
    if document_ids is not None:
        keys = keys & (document_ids[:, :, None] == document_ids[:, None, :])
    weights = weights * keys.any(-1)[:, :, None, None].astype(weights.dtype)

    def total(*heads: Array) -> tuple[Array, Array]:
        out = function(*heads, padding_mask, document_ids)
        return jnp.sum((out * weights).astype(jnp.float32)), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*heads)
    return out, gradients


def assert_equal(found: Any, expected: Any, dtype: str) -> None:
    # A bfloat16 has 8 bits; sums over a row add up a few of their roundings.
    close = {"atol": 3e-6, "rtol": 1e-5} if dtype == "float32" else {"atol": 0.02, "rtol": 0.02}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **close)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(("dtype", "length"), [("float32", 256), ("bfloat16", 128)])
def test_splash_is_the_reference_forward_and_backward(dtype: str, length: int, within: bool) -> None:
    padding_mask, document_ids = rows_of(length)
    rows = padding_mask, document_ids if within else None
    inputs = inputs_of(length, dtype=dtype)
    found = outputs_and_gradients(splash, inputs, *rows)
    assert found[0].dtype == dtype
    assert_equal(found, outputs_and_gradients(xla_attention, inputs, *rows), dtype)


def test_splash_goes_over_several_tiles_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlm_jax.model.kernels._SPLASH_TILES", (128,))
    inputs, rows = inputs_of(384, heads=1), rows_of(384)
    assert_equal(
        outputs_and_gradients(splash, inputs, *rows),
        outputs_and_gradients(xla_attention, inputs, *rows),
        "float32",
    )


@pytest.mark.skipif(not ON_A_GPU, reason="no GPU, and cuDNN runs nowhere else")
@pytest.mark.parametrize("within", [False, True])
def test_cudnn_is_the_reference_forward_and_backward(within: bool) -> None:
    padding_mask, document_ids = rows_of(512)
    rows = padding_mask.at[2].set(padding_mask[3]), document_ids if within else None
    inputs = inputs_of(512, dtype="bfloat16")
    found = outputs_and_gradients(cudnn_attention, inputs, *rows)
    assert_equal(found, outputs_and_gradients(xla_attention, inputs, *rows), "bfloat16")
    empty = outputs_and_gradients(cudnn_attention, inputs, padding_mask, rows[1])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(empty))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_cudnn_is_in_the_program_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, mesh: tuple[int, int, int] | None, within: bool
) -> None:
    """Lowered without a GPU, where JAX asks nothing but for the version of cuDNN."""
    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", version)
    *heads, _ = inputs_of(512, dtype="bfloat16")
    padding_mask, document_ids = rows_of(512)

    def total(query: Array) -> Array:
        documents = document_ids if within else None
        out = attend(query, *heads[1:], padding_mask, documents, implementation="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    with jax.set_mesh(mesh_of(mesh or (1, 1, 1))):
        traced = jax.jit(jax.grad(total)).trace(heads[0])
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # By its length where a row is one document; by a mask that its heads share where it is several.
    name = "__cudnn$fmhaScaleBiasSoftmax" if within else "__cudnn$fmhaSoftmax"
    assert f"@{name}(" in text
    assert f"@{name}Backward(" in text
    rows, here = (1, 1) if mesh else (4, 2)
    assert ("PADDING" in text) == (not within)
    assert (f"tensor<{rows}x1x512x512xbf16>" in text) == within
    assert f"tensor<{rows}x512x{here}x64xbf16>" in text, "each device has its own rows and heads"


def mesh_of(sizes: tuple[int, int, int]) -> jax.sharding.Mesh:
    data, fsdp, tensor = sizes
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def test_on_a_mesh_each_device_computes_its_rows_and_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def watched(query: Array, *others: Any) -> Array:
        seen.append(query.shape)
        return splash(query, *others)

    monkeypatch.setattr(attention, "_KERNELS", {"splash": watched})
    inputs, rows = inputs_of(), rows_of()
    expected = outputs_and_gradients(xla_attention, inputs, *rows)
    with jax.set_mesh(mesh_of((2, 2, 2))):
        found = outputs_and_gradients(partial(attend, implementation="splash"), inputs, *rows)
    assert set(seen) == {(1, 128, 1, 64)}
    assert_equal(found, expected, "float32")


@pytest.mark.parametrize("function", [xla_attention, splash], ids=["xla", "splash"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_nothing_but_padding_stay_finite(function: Callable[..., Array], dtype: str) -> None:
    *heads, weights = inputs_of(dtype=dtype)
    padding_mask, document_ids = jnp.zeros((4, 128), bool), jnp.zeros((4, 128), jnp.int32)

    def total(*heads: Array) -> Array:
        return jnp.sum(function(*heads, padding_mask, document_ids) * weights)

    for leaf in jax.tree.leaves(jax.value_and_grad(total, argnums=(0, 1, 2))(*heads)):
        assert jnp.isfinite(leaf).all()


SMALL = BertConfig(
    vocabulary_size=61,
    num_layers=2,
    hidden_dim=128,
    num_heads=2,
    intermediate_dim=64,
    max_sequence_length=128,
)


@pytest.fixture(scope="module")
def encode() -> Callable[..., np.ndarray]:
    """Hidden states of token ids [1, 24], with documents, positions from `first` on."""
    model = BertMaskedLM(SMALL, key=jax.random.key(0))

    @jax.jit
    def hidden(token_ids: Array, padding_mask: Array, document_ids: Array | None) -> Array:
        return model.encoder(token_ids, padding_mask, document_ids=document_ids)

    return lambda *inputs: np.asarray(hidden(*(None if x is None else jnp.asarray(x) for x in inputs)))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_documents_of_a_row_know_nothing_of_one_another(
    encode: Callable[..., np.ndarray], data: st.DataObject
) -> None:
    length = 24
    ids = np.array(data.draw(st.lists(st.integers(1, 60), min_size=length, max_size=length)))[None]
    ends = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))[None]
    ends[0, length // 2] = True
    documents = (np.cumsum(ends, axis=1) - ends).astype(np.int32)
    real = np.arange(length)[None] < data.draw(st.integers(length // 2 + 2, length))
    changed = data.draw(st.integers(0, int(real.sum()) - 1))
    other = ids.copy()
    other[0, changed] = 61 - other[0, changed]
    elsewhere = (documents != documents[0, changed]) & real
    before, after = encode(ids, real, documents), encode(other, real, documents)
    np.testing.assert_array_equal(before[elsewhere], after[elsewhere])
    if other[0, changed] != ids[0, changed]:
        free = encode(ids, real, None), encode(other, real, None)
        assert (free[0][elsewhere] != free[1][elsewhere]).any(axis=-1).all()
        assert (before[0, changed] != after[0, changed]).any()


def test_a_document_in_a_row_is_that_document_alone(encode: Callable[..., np.ndarray]) -> None:
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, 24), 1, 61))
    documents = np.repeat([0, 1, 2], [5, 11, 8])[None].astype(np.int32)
    together = encode(ids, np.ones((1, 24), bool), documents)
    for document in range(3):
        # Its tokens where they stand, so at their positions, and nothing else in the row.
        own = documents == document
        alone = encode(np.where(own, ids, 0), own, None)
        np.testing.assert_allclose(together[own], alone[own], atol=2e-6)


def device(platform: str, capability: str | None = None) -> Any:
    kind = {"gpu": "NVIDIA", "tpu": "TPU v5 lite", "cpu": "cpu"}[platform]
    made = SimpleNamespace(platform=platform, device_kind=kind)
    return made if capability is None else SimpleNamespace(**vars(made), compute_capability=capability)


BASE = BertConfig(attention_dropout_rate=0.0)
BF16 = ComputeConfig(dtype="bfloat16")


@pytest.mark.parametrize(
    ("at", "compute", "length", "chosen"),
    [
        (device("tpu"), BF16, 512, "splash"),
        (device("tpu"), ComputeConfig(), 640, "splash"),
        (device("tpu"), BF16, 511, "xla"),
        (device("tpu"), replace(BF16, attention="xla"), 512, "xla"),
        (device("tpu"), replace(BF16, attention="splash"), 128, "splash"),
        (device("gpu", "8.0"), BF16, 512, "cudnn"),
        (device("gpu", "12.0"), BF16, 1024, "cudnn"),
        (device("gpu", "9.0"), replace(BF16, attention="cudnn"), 64, "cudnn"),
        (device("gpu", "9.0"), BF16, 256, "xla"),
        (device("cpu"), BF16, 512, "xla"),
    ],
)
def test_the_platform_and_the_length_choose(
    at: Any, compute: ComputeConfig, length: int, chosen: str
) -> None:
    assert choose_attention(compute, BASE, length, at) == (chosen, "")


@pytest.mark.parametrize(
    ("at", "compute", "model", "length", "said"),
    [
        (device("tpu"), BF16, BertConfig(), 512, "splash needs model.attention_dropout_rate = 0"),
        (device("tpu"), BF16, BASE, 520, "splash needs data.sequence_length to be a multiple of 128, not 520"),
        (device("gpu", "9.0"), BF16, BertConfig(), 512, "cudnn needs model.attention_dropout_rate = 0"),
        (device("gpu", "9.0"), ComputeConfig(), BASE, 512, "cudnn needs compute.dtype = 'bfloat16'"),
        (device("gpu", "9.0"), BF16, BASE, 513, "cudnn needs an even data.sequence_length, not 513"),
        (device("gpu", "9.0"), BF16, replace(BASE, num_heads=4), 512, "cudnn needs a head width"),
        (device("gpu", "7.5"), BF16, BASE, 512, "cudnn needs an NVIDIA GPU of compute capability 8.0"),
        (device("gpu", "gfx90a"), BF16, BASE, 512, "cudnn needs an NVIDIA GPU of compute capability 8.0"),
    ],
)
def test_what_no_kernel_can_do_is_done_by_xla_and_refused_of_a_kernel_that_is_named(
    at: Any, compute: ComputeConfig, model: BertConfig, length: int, said: str
) -> None:
    choice = choose_attention(compute, model, length, at)
    assert choice.implementation == "xla"
    assert choice.reason.startswith(said)
    named, obstacle = said.split(" ", 1)
    with pytest.raises(InputError, match=f"^compute.attention = '{named}': {obstacle}"):
        choose_attention(replace(compute, attention=named), model, length, at)


def test_a_kernel_of_another_platform_is_refused() -> None:
    with pytest.raises(InputError, match=r"compute.attention = 'splash': needs a TPU, not cpu; 'auto' takes"):
        choose_attention(ComputeConfig(attention="splash"), BASE, 512, device("cpu"))
    with pytest.raises(InputError, match=r"'cudnn': needs an NVIDIA GPU .* not TPU v5 lite"):
        choose_attention(replace(BF16, attention="cudnn"), BASE, 512, device("tpu"))


def test_a_kernel_drops_nothing_silently() -> None:
    *heads, _ = inputs_of()
    drops = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
    with pytest.raises(InputError, match=r"'splash': needs model.attention_dropout_rate = 0, .* not 0.1"):
        attend(*heads, rows_of()[0], implementation="splash", **drops)
