"""Loss and accuracy as sums: against a plain computation, in any number of chunks, and without the big buffer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlm_jax.model.loss import masked_lm_sums

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


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
def test_sums_and_gradients_are_those_of_the_plain_formula(
    inputs: tuple[jax.Array, ...], chunks: int
) -> None:
    *arrays, labels, weights = inputs

    def plain(x: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
        logits = x @ table.T + bias[None, None]
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()

    def ours(x: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
        return masked_lm_sums(x, table, bias, labels, weights, vocabulary_size=VOCABULARY, chunks=chunks).loss

    np.testing.assert_allclose(ours(*arrays), plain(*arrays), rtol=1e-6)
    for a, b in zip(jax.grad(ours, (0, 1, 2))(*arrays), jax.grad(plain, (0, 1, 2))(*arrays), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    best = (arrays[0] @ arrays[1].T + arrays[2][None, None]).argmax(-1)
    half_right = jnp.where(jnp.arange(MASKED)[None] % 2 == 0, best, labels)
    sums = masked_lm_sums(*arrays, half_right, weights, vocabulary_size=VOCABULARY, chunks=chunks)
    assert sums.correct == (weights * (best == half_right)).sum() > 3
    assert sums.weight == weights.sum() > sums.correct


def test_label_zero_is_a_label(inputs: tuple[jax.Array, ...]) -> None:
    *arrays, labels, weights = inputs
    sums = masked_lm_sums(*arrays, jnp.zeros_like(labels), weights, vocabulary_size=VOCABULARY)
    assert sums.weight == weights.sum()
    assert sums.loss > 0


def test_padding_rows_of_the_table_take_no_probability(inputs: tuple[jax.Array, ...]) -> None:
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
