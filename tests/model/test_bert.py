"""The encoder and its head, compared with Hugging Face's values; effects of padding, dropout and compute settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlm_jax.config import BertConfig, ComputeConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.families.bert import BERT
from mlm_jax.formats.model_folder import declared_parameters
from mlm_jax.formats.name_table import Tensor, read_params
from mlm_jax.model.bert import BertEncoder, BertMaskedLM, count_parameters
from mlm_jax.model.layers import split_model
from tests.golden.weights import CONFIGS, hugging_face_state_dict

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "hugging_face_bert.npz")
SMALL = BertConfig(
    vocabulary_size=61, num_layers=3, hidden_dim=16, num_heads=2, intermediate_dim=32, max_sequence_length=20
)


def bert_config(hf: dict[str, Any]) -> BertConfig:
    activation = "gelu_tanh" if hf["hidden_act"] == "gelu_new" else "gelu"
    return BertConfig(
        vocabulary_size=hf["vocab_size"],
        num_layers=hf["num_hidden_layers"],
        hidden_dim=hf["hidden_size"],
        num_heads=hf["num_attention_heads"],
        intermediate_dim=hf["intermediate_size"],
        max_sequence_length=hf["max_position_embeddings"],
        num_segments=hf["type_vocab_size"],
        activation=activation,
        head_activation=activation,
        layer_norm_epsilon=hf["layer_norm_eps"],
        head_layer_norm_epsilon=hf["layer_norm_eps"],
    )


def parameters_of(state: dict[str, np.ndarray], config: BertConfig) -> dict[str, Any]:
    """Converts Hugging Face's arrays by the conversion table."""
    tensors = {name: Tensor(array.shape, lambda array=array: array) for name, array in state.items()}
    return read_params(
        Path("golden"), BERT.rows([]), declared_parameters(config, ["encoder", "head"]), tensors
    )


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_outputs_match_hugging_face(name: str) -> None:
    hf = CONFIGS[name]
    config = bert_config(hf)
    graph, fresh = split_model(BertMaskedLM(config, key=jax.random.key(0)))
    params = parameters_of(hugging_face_state_dict(hf), config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    model = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
    ids, mask, segments, positions = (
        GOLDEN[f"{name}/{field}"] for field in ("token_ids", "padding_mask", "segment_ids", "positions")
    )
    inputs = (jnp.asarray(ids), jnp.asarray(mask))
    logits = model(*inputs, jnp.asarray(positions), jnp.asarray(segments))
    np.testing.assert_allclose(logits, GOLDEN[f"{name}/logits"], atol=1e-5, rtol=0)
    hidden = model.encoder(*inputs, jnp.asarray(segments))
    at_positions = np.take_along_axis(np.asarray(hidden), positions[..., None], 1)
    np.testing.assert_allclose(at_positions, GOLDEN[f"{name}/last_hidden_state"], atol=1e-5, rtol=0)
    pooled = model.encoder.pooler.pool(hidden, inputs[1])
    np.testing.assert_allclose(pooled, GOLDEN[f"{name}/pooled"], atol=1e-5, rtol=0)


# By hand: (V + P + 2 + 2)·D + L·(12 D² + 13 D) + D² + D, and D² + 3 D + V for the head.
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_parameter_counts_are_exact(name: str) -> None:
    c = PRESETS[name]
    width, vocabulary = c.hidden_dim, c.vocabulary_size
    backbone = (vocabulary + 512 + 2 + 2) * width + c.num_layers * (12 * width**2 + 13 * width)
    pooler, head = width**2 + width, width**2 + 3 * width + vocabulary
    assert count_parameters(c) == backbone + pooler
    assert count_parameters(c, pooler=False) == backbone
    assert count_parameters(c, pooler=False, mlm_head=True) == backbone + head
    untied = replace(c, tie_embeddings=False, vocabulary_multiple=128)
    assert count_parameters(untied, pooler=False, mlm_head=True) == backbone + head + vocabulary * width


def test_published_parameter_counts() -> None:
    published = {"tiny": 4.39, "small": 28.76, "medium": 41.37, "base": 109.48, "large": 335.14}
    for size, millions in published.items():
        assert round(count_parameters(PRESETS[f"bert_{size}_en_uncased"]) / 1e6, 2) == millions
    multi = {
        "bert_base_en": 108.31,
        "bert_base_zh": 102.27,
        "bert_base_multi": 177.85,
        "bert_large_en": 333.58,
    }
    for name, millions in multi.items():
        assert round(count_parameters(PRESETS[name]) / 1e6, 2) == millions


def inputs_of(length: int = 12) -> tuple[jax.Array, jax.Array, jax.Array]:
    ids = jax.random.randint(jax.random.key(1), (2, length), 1, 61)
    return ids, jnp.ones((2, length), bool), jnp.array([[1, 4, 7], [0, 2, length - 1]])


def test_content_and_amount_of_padding_have_no_effect() -> None:
    model = BertMaskedLM(SMALL, key=jax.random.key(0))
    ids, mask, positions = inputs_of()
    alone = model(ids, mask, positions)
    for filler in (0, 17):
        longer = jnp.pad(ids, ((0, 0), (0, 5)), constant_values=filler)
        padded = model(longer, jnp.pad(mask, ((0, 0), (0, 5))), positions)
        np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_only_padding_stays_finite(dtype: str) -> None:
    model = BertMaskedLM(SMALL, key=jax.random.key(0))
    ids, mask, positions = inputs_of()

    def total(ids: jax.Array) -> jax.Array:
        return model(ids, jnp.zeros_like(mask), positions, compute=ComputeConfig(dtype=dtype)).sum()

    assert jnp.isfinite(total(ids))


def test_the_head_runs_at_the_given_positions() -> None:
    model = BertMaskedLM(SMALL, key=jax.random.key(0))
    ids, mask, positions = inputs_of()
    everywhere = model(ids, mask, jnp.tile(jnp.arange(12), (2, 1)))
    expected = np.take_along_axis(np.asarray(everywhere), np.asarray(positions)[..., None], 1)
    np.testing.assert_allclose(model(ids, mask, positions), expected, atol=1e-6)


@pytest.mark.parametrize(
    "compute",
    [
        pytest.param(compute, marks=pytest.mark.slow)
        for compute in (ComputeConfig(remat="dots"), ComputeConfig(remat="full", scan_unroll=3))
    ],
)
def test_compute_settings_change_neither_values_nor_gradients(compute: ComputeConfig) -> None:
    graph, params = split_model(BertMaskedLM(SMALL, key=jax.random.key(0)))

    def loss(params: Any, compute: ComputeConfig) -> jax.Array:
        model = nnx.merge(graph, params)
        logits = model(*inputs_of(), dropout_key=jax.random.key(3), compute=compute)
        return jnp.square(logits).sum()

    plain = jax.value_and_grad(loss)(params, ComputeConfig())
    other = jax.value_and_grad(loss)(params, compute)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, other)


@pytest.mark.parametrize(("remat", "share"), [("dots", 0.9), ("full", 0.6)])
def test_rematerialization_needs_less_memory(remat: str, share: float) -> None:
    """GELU and LayerNorm are recomputed even without rematerialization, so "dots" saves little."""
    config = replace(SMALL, num_layers=8, hidden_dim=64, intermediate_dim=256)
    graph, params = split_model(nnx.eval_shape(lambda: BertMaskedLM(config, key=jax.random.key(0))))

    def temporary_bytes(compute: ComputeConfig) -> int:
        def loss(params: Any) -> jax.Array:
            return nnx.merge(graph, params)(*inputs_of(20), compute=compute).sum()

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(ComputeConfig(remat=remat)) < share * temporary_bytes(ComputeConfig())


def test_without_a_loop_a_barrier_keeps_xla_from_undoing_rematerialization() -> None:
    graph, params = split_model(nnx.eval_shape(lambda: BertMaskedLM(SMALL, key=jax.random.key(0))))

    def has_barrier(unroll: int) -> bool:
        def loss(params: Any) -> jax.Array:
            compute = ComputeConfig(remat="full", scan_unroll=unroll)
            return nnx.merge(graph, params)(*inputs_of(), compute=compute).sum()

        return "optimization_barrier" in jax.jit(jax.grad(loss)).lower(params).as_text()

    assert has_barrier(SMALL.num_layers)
    assert not has_barrier(1)


def test_bfloat16_is_close_to_float32() -> None:
    model = BertMaskedLM(SMALL, key=jax.random.key(0))
    exact = model(*inputs_of())
    rounded = model(*inputs_of(), compute=ComputeConfig(dtype="bfloat16"))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.02)
    assert (rounded != exact).any()


def test_every_layer_has_its_own_dropout() -> None:
    ids, mask, _ = inputs_of()
    encoder = BertEncoder(SMALL, key=jax.random.key(0))
    graph, stacked = nnx.split(encoder.layers)
    embeddings_key, layers_key = jax.random.split(jax.random.key(7))

    def one_by_one(keys: list[jax.Array]) -> jax.Array:
        x = encoder.embeddings(ids, mask, jnp.zeros_like(ids), None, embeddings_key, "float32")
        for index, key in enumerate(keys):
            x = nnx.merge(graph, jax.tree.map(lambda w, i=index: w[i], stacked))(x, mask, key)
        return x

    keys = [jax.random.fold_in(layers_key, index) for index in range(3)]
    out = encoder(ids, mask, dropout_key=jax.random.key(7))
    np.testing.assert_allclose(out, one_by_one(keys), atol=1e-5)
    assert np.abs(np.asarray(out - one_by_one([keys[0]] * 3))).mean() > 1e-3


def test_unreachable_rows_of_a_padded_table_get_no_probability() -> None:
    config = replace(SMALL, vocabulary_multiple=16)
    assert config.padded_vocabulary_size == 64
    model = BertMaskedLM(config, key=jax.random.key(0))
    assert model.encoder.embeddings.token.shape == (64, 16)
    assert model(*inputs_of()).shape == (2, 3, 61)


def test_an_untied_head_has_its_own_table() -> None:
    tied = BertMaskedLM(SMALL, key=jax.random.key(0))
    untied = BertMaskedLM(replace(SMALL, tie_embeddings=False), key=jax.random.key(0))
    assert tied.output_embedding()[0] is not None
    assert untied.head.output.shape == (61, 16)
    np.testing.assert_array_equal(tied.output_embedding()[0], tied.encoder.embeddings.token[...])
    assert (untied.output_embedding()[0] != untied.encoder.embeddings.token[...]).any()


def test_initial_weights_are_truncated_at_two_standard_deviations() -> None:
    model = BertEncoder(replace(SMALL, hidden_dim=64), key=jax.random.key(0))
    kernel = np.asarray(model.layers.feed_forward.up.kernel)
    assert np.abs(kernel).max() <= 0.04
    assert np.abs(kernel).max() > 0.039
    assert abs(kernel.std() - 0.02 * 0.8796) < 5e-4
    assert (kernel[0] != kernel[1]).mean() > 0.99
