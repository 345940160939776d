"""Every architecture compared with a reference in NumPy and float64, and properties of single settings."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlm_jax.config import ComputeConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.model.bert import BertEncoder, count_parameters
from mlm_jax.model.layers import split_model
from mlm_jax.model.packed import texts_and_positions
from tests.model.reference import EVERYTHING, OF_FAMILIES, count_by_hand, covering_set, encode, name_of

SMALL = BertConfig(
    vocabulary_size=61,
    num_layers=3,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=24,
    max_sequence_length=20,
    layer_norm_epsilon=1e-5,
    pooler=False,
)
COVERING = [replace(SMALL, **changes) for changes, _ in (*covering_set(), *OF_FAMILIES.values())]
NAMES = [*(name_of(changes) for changes, _ in covering_set()), *OF_FAMILIES]
LENGTH = 17
DOCUMENTS = np.repeat([[0, 1, 2]], [8, 6, 3], axis=1).repeat(2, axis=0)


def float64(compute: ComputeConfig | None = None) -> ComputeConfig:
    """Returns settings with dtype float64, which configs do not allow."""
    wide = replace(compute or ComputeConfig())
    object.__setattr__(wide, "dtype", "float64")
    return wide


def inputs() -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.RandomState(1).randint(1, 61, (2, LENGTH))
    return ids, np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 5]])


def sharp_params(config: BertConfig) -> tuple[Any, dict[str, Any]]:
    """Returns a graph and random weights, none at its initial value, for which attention is far from uniform."""
    graph, params = split_model(nnx.eval_shape(lambda: BertEncoder(config, key=jax.random.key(0))))
    random = np.random.RandomState(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scale = path[-1].key == "scale"
        return random.standard_normal(leaf.shape) * (0.3 if scale else 0.5) + scale

    return graph, jax.tree_util.tree_map_with_path(draw, params)


def outputs(
    config: BertConfig, compute: ComputeConfig | None = None, *, depth: int | None = None, **given: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns our outputs in float64, those of the reference, and the padding mask."""
    graph, params = sharp_params(config)
    ids, real = inputs()
    with jax.enable_x64(True):

        @jax.jit
        def run(params: Any, given: dict[str, Any]) -> jax.Array:
            encoder = nnx.merge(graph, params)
            return encoder(
                jnp.asarray(ids), jnp.asarray(real), compute=float64(compute), depth=depth, **given
            )

        found = np.asarray(run(params, {name: jnp.asarray(array) for name, array in given.items()}))
    assert found.dtype == np.float64
    return found, encode(config, params, ids, real, **given), real


@pytest.mark.parametrize("config", COVERING, ids=NAMES)
def test_hidden_states_match_the_reference(config: BertConfig) -> None:
    found, expected, real = outputs(config, document_ids=DOCUMENTS)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-10)


# The other settings change only parameters or training.
OF_HIDDEN_STATES = set(EVERYTHING) - {
    *("embedding_dropout", "tie_embeddings", "head_activation", "biases", "num_segments")
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            changes, id=name, marks=() if name in ("bert", "everything", "mpnet") else pytest.mark.slow
        )
        for name, changes in {
            "bert": {},
            "everything": EVERYTHING,
            **{name: changes for name, (changes, _) in OF_FAMILIES.items()},
        }.items()
    ],
)
def test_texts_in_a_row_match_the_reference_of_each_alone(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    graph, params = sharp_params(config)
    ids, real = inputs()
    # A mask, whose share of a text matters to ESM.
    ids[0, 10] = ids[1, 2] = 4
    starts = np.array([[0, 8, 14], [0, 5, LENGTH]])
    with jax.enable_x64(True):

        @jax.jit
        def run(params: Any) -> jax.Array:
            texts, positions = texts_and_positions(jnp.asarray(starts), LENGTH)
            return nnx.merge(graph, params)(
                jnp.asarray(ids),
                jnp.asarray(real),
                document_ids=texts,
                position_ids=positions,
                compute=float64(),
            )

        found = np.asarray(run(params))
    for row, start, end in ((0, 0, 8), (0, 8, 14), (0, 14, LENGTH), (1, 0, 5), (1, 5, LENGTH - 5)):
        alone = ids[row : row + 1, start:end]
        expected = encode(config, params, alone, np.ones(alone.shape, bool))
        np.testing.assert_allclose(found[row, start:end], expected[0], atol=1e-10)


@pytest.mark.parametrize("wrong", sorted(OF_HIDDEN_STATES))
def test_every_setting_changes_the_reference(wrong: str) -> None:
    """A setting that changed no hidden state would not be tested."""
    config = replace(SMALL, **EVERYTHING)
    other = {wrong: getattr(SMALL, wrong)}
    if wrong == "positions":
        other = {"positions": "none", "rotary_base": 10_000.0, "local_rotary_base": None}
    elif wrong == "local_attention_window":
        other = {"local_attention_window": 8}
    elif wrong == "global_attention_every":
        other = {"global_attention_every": 3}
    elif wrong == "activation":
        other = {"activation": "geglu"}
    _, params = sharp_params(replace(config, embedding_norm=True))
    ids, real = inputs()
    one, another = (encode(c, params, ids, real)[real] for c in (config, replace(config, **other)))
    assert np.abs(one - another).max() > 1e-2


@pytest.mark.parametrize(
    "compute", [ComputeConfig(remat="full", scan_unroll=3), ComputeConfig(remat="dots", attention="xla")]
)
def test_the_loop_over_layers_does_not_affect_the_result(compute: ComputeConfig) -> None:
    found, expected, real = outputs(replace(SMALL, **EVERYTHING), compute, document_ids=DOCUMENTS)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-10)


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_hidden_states_at_a_depth_match_a_model_with_that_many_layers(placement: str) -> None:
    """The depth does not affect which layers are local, and only the last layer is followed by the final norm."""
    config = replace(SMALL, **EVERYTHING | {"norm_placement": placement})
    stream, _, real = outputs(config, depth=2)
    shallow = replace(config, num_layers=2)
    _, params = sharp_params(config)
    two = params | {"layers": jax.tree.map(lambda w: w[:2], params["layers"])}
    if placement == "pre":
        # With a scale of 1, the norm divides the residual stream by its root mean square.
        two |= {"final_norm": {"scale": np.ones(16)}}
        stream = stream / np.sqrt((stream**2).mean(-1, keepdims=True) + config.layer_norm_epsilon)
    ids, _ = inputs()
    np.testing.assert_allclose(stream[real], encode(shallow, two, ids, real)[real], atol=1e-10)


@pytest.mark.parametrize("config", COVERING, ids=NAMES)
def test_parameters_are_counted_by_hand(config: BertConfig) -> None:
    for pooler in (False, True):
        for head in (False, True):
            expected = count_by_hand(config, pooler=pooler, mlm_head=head)
            assert count_parameters(config, pooler=pooler, mlm_head=head) == expected


def test_segment_ids_are_rejected_by_a_model_without_segments() -> None:
    with pytest.raises(InputError, match=r"segment_ids: must be None, .* model\.num_segments = 0"):
        outputs(replace(SMALL, num_segments=0), segment_ids=np.zeros((2, LENGTH), int))
    found, expected, real = outputs(SMALL, segment_ids=np.arange(2 * LENGTH).reshape(2, -1) % 2)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-10)


def test_a_model_without_positions_ignores_order() -> None:
    encoder = jax.jit(BertEncoder(replace(SMALL, positions="none"), key=jax.random.key(0)))
    ids, _ = inputs()
    order = np.random.RandomState(0).permutation(LENGTH)
    straight, shuffled = (
        np.asarray(encoder(jnp.asarray(row), jnp.ones(row.shape, bool))) for row in (ids, ids[:, order])
    )
    np.testing.assert_allclose(shuffled, straight[:, order], atol=1e-5)


def test_embedding_dropout_applies_only_to_the_embeddings() -> None:
    ids, key = jnp.asarray(inputs()[0]), jax.random.key(0)
    for drops in (True, False):
        encoder = BertEncoder(replace(SMALL, embedding_dropout=drops, dropout_rate=0.5), key=key)
        embedded = np.asarray(encoder.embeddings(ids, ids > 0, None, None, key, "float32"))
        assert (embedded == 0).any() == drops
        hidden = [np.asarray(encoder(ids, jnp.ones(ids.shape, bool), dropout_key=k)) for k in (key, None)]
        assert np.abs(hidden[0] - hidden[1]).max() > 1e-3
