"""Stacked layers are optimized as optax optimizes a model with one array per layer; layer-wise learning-rate decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlm_jax.config import BertConfig, OptimizerConfig
from mlm_jax.model.bert import BertMaskedLM, abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.optim.layer_transforms import map_paths, scale_by_factored_rms
from mlm_jax.optim.optimizer import decay_mask, make_optimizer
from mlm_jax.parallel.weights import declared_weights

# Wide enough for factored matrices, none of which is square; several heads.
MODEL = BertConfig(
    vocabulary_size=150,
    num_layers=3,
    hidden_dim=128,
    num_heads=4,
    intermediate_dim=160,
    activation="geglu",
    max_sequence_length=8,
    pooler=False,
)
WEIGHTS = declared_weights(abstract_masked_lm(MODEL))
RATE, DECAY = 2.0**-5, 2.0**-3
NAMES = ["adamw", "stable_adamw", "lamb", "adafactor", "muon"]


def config_of(name: Any, **changes: Any) -> OptimizerConfig:
    return OptimizerConfig(name=name, weight_decay=DECAY, max_grad_norm=None, **changes)


def random_params(seed: int = 0) -> Any:
    """Every weight of every layer has its own scale, so that mixing up two of them is noticed."""
    params = split_model(BertMaskedLM(MODEL, key=jax.random.key(0)))[1]
    leaves, treedef = jax.tree.flatten(params)
    generator = np.random.default_rng(seed)
    drawn = [generator.normal(size=leaf.shape) for leaf in leaves]
    scales = [10 ** generator.uniform(-2, 1, size=(len(x), *[1] * (x.ndim - 1))) for x in drawn]
    return treedef.unflatten([jnp.array(x * s) for x, s in zip(drawn, scales, strict=True)])


def unstacked(params: Any) -> dict[str, Any]:
    """One array per layer and weight, by path: kernels as matrices [inputs, outputs], other weights of layers flat."""
    weights: dict[str, Any] = {}

    def add(path: str, weight: Any) -> None:
        if not path.startswith("encoder/layers/"):
            weights[path] = weight
            return
        for layer, one in enumerate(weight):
            inputs = -1 if path.endswith("attention/output/kernel") else one.shape[0]
            outputs = MODEL.hidden_dim if inputs == -1 else -1
            flat = one.reshape(inputs, outputs) if path.endswith("kernel") else one.reshape(-1)
            weights[f"{layer}/{path}"] = flat

    map_paths(add, params)
    return weights


def decayed(weights: dict[str, Any]) -> dict[str, bool]:
    return {path: not path.endswith(("bias", "scale")) for path in weights}


def stable_adamw_of_the_paper() -> optax.GradientTransformation:
    """Algorithm 2 of Wortsman et al. 2023, with the moments' own recurrences in place of a correction of their bias."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-6

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), zeros, zeros

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        count, first, second = state[0] + 1, *state[1:]
        debiased = [beta * (1 - beta ** (count - 1.0)) / (1 - beta**count) for beta in (beta1, beta2)]
        first = jax.tree.map(lambda v, g: debiased[0] * v + (1 - debiased[0]) * g, first, grads)
        second = jax.tree.map(lambda u, g: debiased[1] * u + (1 - debiased[1]) * g**2, second, grads)
        updates = {}
        for path, gradient in grads.items():
            v, u = first[path], second[path]
            rms = jnp.sqrt(jnp.mean(gradient**2 / jnp.maximum(u, epsilon**2)))
            weight = DECAY * params[path] if decayed(params)[path] else 0.0
            updates[path] = -RATE / jnp.maximum(1, rms) * (weight + v / (jnp.sqrt(u) + epsilon))
        return updates, (count, first, second)

    return optax.GradientTransformation(init, update)


def reference_of(config: OptimizerConfig) -> optax.GradientTransformation:
    """optax's optimizer of that name, for the unstacked model."""
    adamw = optax.adamw(RATE, eps=1e-6, weight_decay=DECAY, mask=decayed)
    if config.name == "adamw":
        return adamw
    if config.name == "stable_adamw":
        return stable_adamw_of_the_paper()
    if config.name == "lamb":
        return optax.chain(
            optax.scale_by_adam(eps=1e-6),
            optax.add_decayed_weights(DECAY, decayed),
            optax.masked(optax.scale_by_trust_ratio(), decayed),
            optax.scale(-RATE),
        )
    if config.name == "adafactor":
        return optax.adafactor(
            RATE,
            momentum=config.beta1,
            dtype_momentum=jnp.float64,
            weight_decay_rate=RATE * DECAY,
            weight_decay_mask=decayed,
        )
    muon = optax.contrib.muon(RATE, weight_decay=DECAY, consistent_rms=0.2)

    def labels(weights: dict[str, Any]) -> dict[str, str]:
        in_layers = [path[0].isdigit() and path.endswith("kernel") for path in weights]
        return {path: "muon" if matrix else "adamw" for path, matrix in zip(weights, in_layers, strict=True)}

    return optax.partition({"muon": muon, "adamw": adamw}, labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        config_of("lamb"),
        *(pytest.param(config_of(name), marks=pytest.mark.slow) for name in NAMES if name != "lamb"),
        pytest.param(config_of("adafactor", beta1=0.8), marks=pytest.mark.slow),
    ],
    ids=lambda config: f"{config.name}-{config.beta1}",
)
def test_every_layer_is_optimized_as_optax_does_by_itself(config: OptimizerConfig) -> None:
    with jax.enable_x64(True):
        params = random_params()
        assert decayed(unstacked(params)) == {
            path: bool(np.all(mask))
            for path, mask in unstacked(
                jax.tree.map(lambda w, d: jnp.full(w.shape, d), params, decay_mask(WEIGHTS))
            ).items()
        }
        ours, theirs = make_optimizer(config, WEIGHTS, RATE), reference_of(config)
        alone = unstacked(params)
        states = ours.init(params), theirs.init(alone)
        for seed in (1, 2, 3):
            grads = random_params(seed)
            updates, ours_state = jax.jit(ours.update)(grads, states[0], params)
            expected, their_state = jax.jit(theirs.update)(unstacked(grads), states[1], alone)
            states = ours_state, their_state
            params, alone = optax.apply_updates(params, updates), optax.apply_updates(alone, expected)
            found = unstacked(updates)
            assert found.keys() == expected.keys()
            for path, update in found.items():
                np.testing.assert_allclose(update, expected[path], rtol=1e-10, atol=1e-13, err_msg=path)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_deeper_layers_learn_more_slowly(name: Any) -> None:
    """Counted as in BEiT: the embeddings are one below the first layer, the head one above the last."""
    with jax.enable_x64(True):
        params, grads = random_params(), random_params(1)
        frozen = ("head/norm/*",)
        updates = {}
        for rate in (1.0, 0.5):
            config = config_of(name, layer_rate_decay=rate, freeze=frozen)
            optimizer = make_optimizer(config, WEIGHTS, RATE)
            updates[rate] = optimizer.update(grads, optimizer.init(params), params)[0]
        ratios: dict[str, Any] = {}
        map_paths(lambda path, a, b: ratios.update({path: np.asarray(a / b)}), updates[0.5], updates[1.0])
        for path, ratio in ratios.items():
            if path.startswith("head/norm"):
                assert np.isnan(ratio).all(), "frozen weights have no update"
            elif path.startswith("encoder/layers"):
                for layer in range(3):
                    np.testing.assert_allclose(ratio[layer], 0.5 ** (3 - layer), rtol=1e-12, err_msg=path)
            else:
                expected = 0.5**4 if path.startswith("encoder/embeddings") else 1.0
                np.testing.assert_allclose(ratio, expected, rtol=1e-12, err_msg=path)


def test_factored_moments_take_rows_and_columns() -> None:
    params = random_params()
    state = scale_by_factored_rms(1e-30, WEIGHTS).init(params)
    query = ("encoder", "layers", "attention", "query")

    def at(tree: Any, *path: str) -> tuple[int, ...]:
        for key in path:
            tree = tree[key]
        return tree.shape

    assert at(state.v_row, *query, "kernel") == at(state.v_col, *query, "kernel") == (3, 128)
    assert at(state.v, *query, "kernel") == (3, 1)
    assert at(state.v, *query, "bias") == at(params, *query, "bias") == (3, 4, 32)
    assert at(state.v_row, "encoder", "layers", "feed_forward", "up", "kernel") == (3, 128)
    assert at(state.v_col, "encoder", "layers", "feed_forward", "up", "kernel") == (3, 160)
    assert at(state.v_row, "encoder", "embeddings", "token") == (128,)
    assert at(state.v_col, "encoder", "embeddings", "token") == (150,)
    assert at(state.v, "encoder", "embeddings", "segment") == (2, 128)
    whole, kept = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, state))
    assert kept < 0.04 * whole
