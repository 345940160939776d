"""Loss sums and gradients, compared with a plain computation, for any number of chunks; no buffer of all logits."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from mlm_jax.config import BertConfig, ComputeConfig, DataConfig, MeshConfig, TrainConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.model.loss import masked_lm_sums
from mlm_jax.parallel.sharding import make_mesh, partition_spec
from mlm_jax.pods.compile_check import stand_in_masking
from mlm_jax.pods.hlo import parse
from mlm_jax.step.program import build_program

BATCH, MASKED, WIDTH, VOCABULARY = 3, 7, 8, 50


@pytest.fixture
def inputs() -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    return (
        jax.random.normal(keys[0], (BATCH, MASKED, WIDTH)),
        jax.random.normal(keys[1], (VOCABULARY, WIDTH)),
        jax.random.normal(keys[2], (VOCABULARY,)),
        jax.random.randint(keys[3], (BATCH, MASKED), 0, VOCABULARY),
        jax.random.bernoulli(keys[4], 0.7, (BATCH, MASKED)).astype(jnp.float32),
    )


def plain(
    x: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, weights: jax.Array
) -> jax.Array:
    """Computes all logits at once; differentiated by JAX."""
    logits = x @ table.T + bias[None, None]
    return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()


def ours(chunks: int | None) -> Callable[..., jax.Array]:
    return lambda *inputs: masked_lm_sums(*inputs, vocabulary_size=inputs[1].shape[0], chunks=chunks).loss


def gradients(loss: Callable[..., jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Returns the loss and its gradients with respect to predictions, table and bias."""
    value, of_arrays = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)
    return value, *of_arrays


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
def test_sums_and_gradients_match_the_plain_formula(inputs: tuple[jax.Array, ...], chunks: int) -> None:
    *arrays, labels, weights = inputs
    for a, b in zip(gradients(ours(chunks), inputs), gradients(plain, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)
    best = (arrays[0] @ arrays[1].T + arrays[2][None, None]).argmax(-1)
    half_right = jnp.where(jnp.arange(MASKED)[None] % 2 == 0, best, labels)
    sums = masked_lm_sums(*arrays, half_right, weights, vocabulary_size=VOCABULARY, chunks=chunks)
    assert sums.correct == (weights * (best == half_right)).sum() > 3
    assert sums.weight == weights.sum() > sums.correct


MESHES = [(1, 1, 1), (8, 1, 1), (2, 4, 1), (1, 1, 8), (2, 2, 2)]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("chunks", [1, 3])
def test_gradients_are_exact_in_float64_on_any_mesh(mesh: tuple[int, int, int], chunks: int) -> None:
    """To a few roundings of float64, whether or not the vocabulary and the rows are split."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 5)
        inputs = (
            jax.random.normal(keys[0], (16, MASKED, WIDTH), jnp.float64),
            jax.random.normal(keys[1], (VOCABULARY + 6, WIDTH), jnp.float64),
            jax.random.normal(keys[2], (VOCABULARY + 6,), jnp.float64),
            jax.random.randint(keys[3], (16, MASKED), 0, VOCABULARY),
            jax.random.bernoulli(keys[4], 0.7, (16, MASKED)).astype(jnp.float32),
        )
        expected = gradients(plain, inputs)
        devices = make_mesh(
            MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2]), jax.devices()[: math.prod(mesh)]
        )
        axes = [("batch",), ("vocabulary", "embed"), ("vocabulary",), ("batch",), ("batch",)]
        with jax.set_mesh(devices):
            placed = tuple(
                jax.device_put(array, NamedSharding(devices, partition_spec(names)))
                for array, names in zip(inputs, axes, strict=True)
            )
            for a, b in zip(gradients(ours(chunks), placed), expected, strict=True):
                assert a.dtype == jnp.float64
                np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


BERT_LARGE = replace(PRESETS["bert_large_en_uncased"], pooler=False, vocabulary_multiple=128)


def arrays_of_the_vocabulary(model: BertConfig, rows: int, mesh: MeshConfig, **compute: int) -> set[int]:
    """Sizes of the float32 arrays of a compiled step that have a vocabulary dimension; 77 of 512 tokens masked."""
    config = TrainConfig(
        model=model,
        data=DataConfig(sequence_length=512),
        mesh=mesh,
        compute=ComputeConfig(remat="full", **compute),
        batch_size=rows,
        num_steps=10,
    )
    devices = jax.devices()[: mesh.tensor]
    program = build_program(config, stand_in_masking(config), make_mesh(mesh, devices))
    vocabulary = model.padded_vocabulary_size // mesh.tensor
    return {
        math.prod(shape.dims)
        for computation in parse(program.compiled_train.as_text() or "").computations.values()
        for instruction in computation.instructions.values()
        for shape in instruction.shapes
        if shape.dtype == "f32" and vocabulary in shape.dims
    }


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_no_step_of_bert_large_holds_all_logits(tensor: int) -> None:
    """16 rows per device, and twice as many if two devices share the vocabulary, with default settings."""
    rows, vocabulary = 16 * tensor, BERT_LARGE.padded_vocabulary_size // tensor
    arrays = arrays_of_the_vocabulary(BERT_LARGE, rows, MeshConfig(data=1, tensor=tensor))
    assert rows * 39 * vocabulary in arrays, "a chunk is 39 of 77 positions"
    assert max(arrays) == max(rows * 39 * vocabulary, vocabulary * BERT_LARGE.hidden_dim)


@pytest.mark.slow
def test_in_one_chunk_a_step_holds_all_logits() -> None:
    """Shows that the test above would find such an array, with two layers of BERT-large."""
    shallow = replace(BERT_LARGE, num_layers=2)
    arrays = arrays_of_the_vocabulary(shallow, 16, MeshConfig(data=1), loss_chunks=1)
    assert 16 * 77 * BERT_LARGE.padded_vocabulary_size in arrays


@pytest.mark.parametrize(
    ("rows", "positions"),
    [(16, 77), (64, 77), (128, 77), (512, 20), (700, 20), (1000, 20), (5000, 3), (0, 4)],
)
@pytest.mark.parametrize("vocabulary", [30_592, 119_547])
def test_chunks_have_the_intended_size_and_none_is_empty(rows: int, positions: int, vocabulary: int) -> None:
    def loss(*arrays: jax.Array) -> jax.Array:
        return masked_lm_sums(*arrays, vocabulary_size=vocabulary).loss

    shapes = [(rows, positions, 2), (vocabulary, 2), (vocabulary,), (rows, positions), (rows, positions)]
    dtypes = [jnp.float32] * 3 + [jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    text = str(jax.make_jaxpr(loss)(*arguments))
    pieces = {int(n) for n in re.findall(rf"f32\[{rows},(\d+),{vocabulary}\]", text)}
    (piece,) = pieces
    assert piece == 1 or 4 * rows * piece * vocabulary <= 128 * 2**20
    count = int((re.search(r"length=(\d+)", text) or [0, 1])[1])
    assert 0 <= piece * count - positions < max(piece, 1)


def test_rows_that_the_mesh_does_not_divide_are_rejected(inputs: tuple[jax.Array, ...]) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="3 rows: must be a multiple of 4"):
        masked_lm_sums(*inputs, vocabulary_size=VOCABULARY)


def test_label_zero_is_a_label(inputs: tuple[jax.Array, ...]) -> None:
    *arrays, labels, weights = inputs
    sums = masked_lm_sums(*arrays, jnp.zeros_like(labels), weights, vocabulary_size=VOCABULARY)
    assert sums.weight == weights.sum()
    assert sums.loss > 0


def test_huge_logits_do_not_cancel_the_loss(inputs: tuple[jax.Array, ...]) -> None:
    """The sum of 1e30 and ln V is 1e30 in float32."""
    x, table, bias, labels, weights = inputs
    sums = masked_lm_sums(x, 0 * table, bias * 0 + 1e30, labels, weights, vocabulary_size=VOCABULARY)
    np.testing.assert_allclose(sums.loss, weights.sum() * np.log(VOCABULARY), rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_of_equal_logits_only_the_first_is_right(inputs: tuple[jax.Array, ...], chunks: int) -> None:
    """As with an argmax. Otherwise, the accuracy of a model that computes nothing would be 1."""
    x, table, bias, labels, weights = inputs
    for first in (0, 3):
        bias = jnp.where(jnp.arange(VOCABULARY) < first, -1.0, 0.0)
        sums = masked_lm_sums(x, 0 * table, bias, labels, weights, vocabulary_size=VOCABULARY, chunks=chunks)
        assert sums.correct == (weights * (labels == first)).sum()
        of_first = jnp.full_like(labels, first)
        sums = masked_lm_sums(
            x, 0 * table, bias, of_first, weights, vocabulary_size=VOCABULARY, chunks=chunks
        )
        assert sums.correct == weights.sum()


def test_padding_rows_of_the_table_get_no_probability(inputs: tuple[jax.Array, ...]) -> None:
    x, table, bias, labels, weights = inputs
    expected = masked_lm_sums(*inputs, vocabulary_size=VOCABULARY)
    padded = masked_lm_sums(
        x,
        jnp.pad(table, ((0, 6), (0, 0))),
        jnp.pad(bias, (0, 6)),
        labels,
        weights,
        vocabulary_size=VOCABULARY,
    )
    np.testing.assert_allclose(padded.loss, expected.loss, rtol=1e-6)


@pytest.mark.parametrize(("chunks", "largest_allowed"), [(1, 1.0), (4, 0.25)])
def test_chunks_leave_no_buffer_of_all_logits(chunks: int, largest_allowed: float) -> None:
    rows, masked, vocabulary = 16, 8, 1000
    shapes = [(rows, masked, WIDTH), (vocabulary, WIDTH), (vocabulary,), (rows, masked), (rows, masked)]
    dtypes = [jnp.float32] * 3 + [jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]

    def loss(*arguments: jax.Array) -> jax.Array:
        return masked_lm_sums(*arguments, vocabulary_size=vocabulary, chunks=chunks).loss

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()
    buffers = re.findall(r"f32\[([\d,]+)\]", program)
    largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in buffers)
    assert largest == largest_allowed * rows * masked * vocabulary
