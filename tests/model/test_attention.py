"""Attention within documents and windows, its precision, and the choice of its implementation."""

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
from mlm_jax.parallel.sharding import make_mesh
from tests.model.heads import assert_equal, inputs_of, outputs_and_gradients, rows_of, splash


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_bfloat16_scores_are_not_rounded_before_the_softmax(scale: int) -> None:
    """bfloat16 has a unit roundoff of 0.0039; rounded scores would give errors up to 0.015, and 0.04 in gradients."""
    *heads, weights = inputs_of(dtype="bfloat16")
    inputs = [scale * heads[0], scale * heads[1], heads[2], weights]
    everyone = jnp.ones((4, 128), bool)
    found = outputs_and_gradients(xla_attention, inputs, everyone, None)
    with jax.enable_x64(True):
        exact = [x.astype(jnp.float64) for x in inputs]
        expected = outputs_and_gradients(xla_attention, exact, everyone, None)
    for a, b in zip(jax.tree.leaves(found), map(np.asarray, jax.tree.leaves(expected)), strict=True):
        assert np.linalg.norm(np.asarray(a, np.float64) - b) < 0.0035 * np.linalg.norm(b)


@pytest.mark.parametrize(("within", "reach"), [(False, None), (True, None), (False, 64)])
@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_cudnn_is_in_the_program_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, mesh: tuple[int, int, int] | None, within: bool, reach: int | None
) -> None:
    """Lowered without a GPU: JAX only asks for the version of cuDNN."""
    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", version)
    *heads, _ = inputs_of(512, dtype="bfloat16")
    padding_mask, document_ids = rows_of(512)

    def total(query: Array) -> Array:
        documents = document_ids if within else None
        out = attend(query, *heads[1:], padding_mask, documents, reach, implementation="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    with jax.set_mesh(mesh_of(mesh or (1, 1, 1))):
        traced = jax.jit(jax.grad(total)).trace(heads[0])
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # Rows that are one document need only their lengths; documents and windows need a mask, which the heads share.
    masked = within or reach is not None
    name = "__cudnn$fmhaScaleBiasSoftmax" if masked else "__cudnn$fmhaSoftmax"
    assert f"@{name}(" in text
    assert f"@{name}Backward(" in text
    rows, here = (1, 1) if mesh else (4, 2)
    assert ("PADDING" in text) == (not masked)
    assert (f"tensor<{rows}x1x512x512xbf16>" in text) == within
    # A local layer is four blocks of 128 queries and 256 keys per row.
    assert (f"tensor<{rows * 4}x1x128x256xbf16>" in text) == (reach is not None)
    assert f"tensor<{rows}x512x{here}x64xbf16>" in text, "each device computes its own rows and heads"


def mesh_of(sizes: tuple[int, int, int]) -> jax.sharding.Mesh:
    data, fsdp, tensor = sizes
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def test_each_device_of_a_mesh_computes_its_own_rows_and_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def watched(query: Array, *others: Any, reach: int | None) -> Array:
        seen.append(query.shape)
        return splash(query, *others, reach=reach)

    monkeypatch.setattr(attention, "_KERNELS", {"splash": watched})
    inputs, rows = inputs_of(), rows_of()
    expected = outputs_and_gradients(xla_attention, inputs, *rows)
    with jax.set_mesh(mesh_of((2, 2, 2))):
        found = outputs_and_gradients(partial(attend, implementation="splash"), inputs, *rows)
    assert set(seen) == {(1, 128, 1, 64)}
    assert_equal(found, expected)


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
    """Maps token ids [1, 24], a padding mask and document ids to hidden states."""
    model = BertMaskedLM(SMALL, key=jax.random.key(0))

    @jax.jit
    def hidden(token_ids: Array, padding_mask: Array, document_ids: Array | None) -> Array:
        return model.encoder(token_ids, padding_mask, document_ids=document_ids)

    return lambda *inputs: np.asarray(hidden(*(None if x is None else jnp.asarray(x) for x in inputs)))


@settings(max_examples=20)
@given(data=st.data())
def test_documents_of_a_row_do_not_affect_one_another(
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


def test_a_document_in_a_row_is_encoded_as_if_it_were_alone(encode: Callable[..., np.ndarray]) -> None:
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, 24), 1, 61))
    documents = np.repeat([0, 1, 2], [5, 11, 8])[None].astype(np.int32)
    together = encode(ids, np.ones((1, 24), bool), documents)
    for document in range(3):
        # The document's tokens keep their positions; the rest of the row is padding.
        own = documents == document
        alone = encode(np.where(own, ids, 0), own, None)
        np.testing.assert_allclose(together[own], alone[own], atol=2e-6)


def device(platform: str, capability: str | None = None) -> Any:
    kind = {"gpu": "NVIDIA", "tpu": "TPU v5 lite", "cpu": "cpu"}[platform]
    made = SimpleNamespace(platform=platform, device_kind=kind)
    return made if capability is None else SimpleNamespace(**vars(made), compute_capability=capability)


BASE = BertConfig(attention_dropout_rate=0.0)
LOCAL = replace(BASE, local_attention_window=128, global_attention_every=3)
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
def test_the_choice_follows_platform_and_length(
    at: Any, compute: ComputeConfig, length: int, chosen: str
) -> None:
    assert choose_attention(compute, BASE, length, at) == (chosen, "")


@pytest.mark.parametrize(
    ("at", "compute", "model", "length", "said"),
    [
        (device("tpu"), BF16, BertConfig(), 512, "splash needs model.attention_dropout_rate = 0"),
        (
            device("tpu"),
            BF16,
            BASE,
            520,
            "splash needs data.sequence_length to be a multiple of 128, not 520",
        ),
        (device("gpu", "9.0"), BF16, BertConfig(), 512, "cudnn needs model.attention_dropout_rate = 0"),
        (device("gpu", "9.0"), ComputeConfig(), BASE, 512, "cudnn needs compute.dtype = 'bfloat16'"),
        (device("gpu", "9.0"), BF16, BASE, 513, "cudnn needs an even data.sequence_length, not 513"),
        (device("gpu", "9.0"), BF16, replace(BASE, num_heads=4), 512, "cudnn needs a head width"),
        (device("gpu", "7.5"), BF16, BASE, 512, "cudnn needs an NVIDIA GPU of compute capability 8.0"),
        (device("gpu", "gfx90a"), BF16, BASE, 512, "cudnn needs an NVIDIA GPU of compute capability 8.0"),
    ],
)
def test_auto_uses_xla_where_the_kernel_cannot_run_and_naming_the_kernel_is_an_error(
    at: Any, compute: ComputeConfig, model: BertConfig, length: int, said: str
) -> None:
    choice = choose_attention(compute, model, length, at)
    assert choice.implementation == "xla"
    assert choice.reason.startswith(said)
    named, obstacle = said.split(" ", 1)
    with pytest.raises(InputError, match=f"^compute.attention = '{named}': {obstacle}"):
        choose_attention(replace(compute, attention=named), model, length, at)


@pytest.mark.parametrize(("at", "kernel"), [(device("gpu", "9.0"), "cudnn"), (device("tpu"), "splash")])
def test_kernels_support_local_layers(at: Any, kernel: str) -> None:
    assert choose_attention(BF16, LOCAL, 512, at) == (kernel, "")


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_reach_hides_keys_further_away(mesh: tuple[int, int, int] | None) -> None:
    *heads, _ = inputs_of(32)
    everyone = jnp.ones((4, 32), bool)
    near = jnp.abs(jnp.arange(32)[:, None] - jnp.arange(32)[None]) <= 5
    expected = jax.nn.dot_product_attention(*heads, mask=near[None, None])
    with jax.set_mesh(mesh_of(mesh or (1, 1, 1))):
        found = jax.jit(partial(attend, reach=5))(*heads, everyone)
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_a_kernel_for_another_platform_is_rejected() -> None:
    with pytest.raises(
        InputError, match=r"compute.attention = 'splash': needs a TPU, not cpu; 'auto' chooses"
    ):
        choose_attention(ComputeConfig(attention="splash"), BASE, 512, device("cpu"))
    with pytest.raises(InputError, match=r"'cudnn': needs an NVIDIA GPU .* not TPU v5 lite"):
        choose_attention(replace(BF16, attention="cudnn"), BASE, 512, device("tpu"))


def test_dropout_with_a_kernel_is_an_error() -> None:
    *heads, _ = inputs_of()
    drops = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
    with pytest.raises(InputError, match=r"'splash': needs model.attention_dropout_rate = 0, .* not 0.1"):
        attend(*heads, rows_of()[0], implementation="splash", **drops)
