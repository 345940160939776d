"""Schedules, decay, freezing, LAMB's per-layer trust ratio, and every optimizer on a mesh and in a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlm_jax.config import BertConfig, OptimizerConfig
from mlm_jax.errors import InputError
from mlm_jax.model.bert import BertMaskedLM, abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.optim.layer_transforms import map_paths
from mlm_jax.optim.optimizer import decay_mask, frozen_mask, learning_rate_schedule, make_optimizer
from mlm_jax.parallel.weights import Weight, declared_weights
from mlm_jax.step.program import Program
from mlm_jax.step.update import TrainState
from mlm_jax.store.checkpoint import Checkpointer
from tests import small

MODEL = BertConfig(
    vocabulary_size=30, num_layers=3, hidden_dim=8, num_heads=2, intermediate_dim=16, max_sequence_length=8
)
WEIGHTS = declared_weights(abstract_masked_lm(MODEL))
BASE = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_learning_rate_fraction=0.1)


@pytest.fixture(scope="module")
def params() -> Any:
    return split_model(BertMaskedLM(MODEL, key=jax.random.key(0)))[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "linear"}, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1}),
        ({"schedule": "cosine"}, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1, 40: 0.775}),
        ({"schedule": "trapezoidal", "cooldown_steps": 20}, {5: 0.5, 10: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
        ({"schedule": "trapezoidal", "cooldown_steps": 90}, {5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1}),
        # A quarter of the cooldown takes half of the way.
        (
            {"schedule": "trapezoidal", "cooldown_steps": 20, "cooldown_shape": "sqrt"},
            {10: 1.0, 80: 1.0, 85: 0.55, 100: 0.1},
        ),
        ({"schedule": "linear", "warmup_steps": 0}, {0: 1.0, 50: 0.55, 100: 0.1}),
    ],
)
def test_schedules_pass_through_their_corners(changes: dict[str, Any], expected: dict[int, float]) -> None:
    schedule = learning_rate_schedule(replace(BASE, **changes), 100)
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, err_msg=str(step))


@pytest.mark.parametrize("tied", [True, False])
def test_decay_spares_only_biases_and_norms(tied: bool) -> None:
    weights = declared_weights(abstract_masked_lm(replace(MODEL, tie_embeddings=tied)))
    decayed: dict[str, bool] = {}
    map_paths(lambda path, decays: decayed.update({path: decays}), decay_mask(weights))
    assert decayed == {path: not path.endswith(("bias", "scale")) for path in weights}
    assert ("head/output" in decayed) == (not tied)


def test_a_parameter_that_is_not_declared_is_an_error(params: Any) -> None:
    declared = {path: weight for path, weight in WEIGHTS.items() if path != "head/bias"}
    with pytest.raises(ValueError, match="bias"):
        make_optimizer(BASE, declared, 1.0).init(params)


def test_freezing_by_pattern() -> None:
    def frozen(*patterns: str) -> set[str]:
        paths: set[str] = set()
        mask = frozen_mask(replace(BASE, freeze=patterns), WEIGHTS)
        map_paths(lambda path, held: held and paths.add(path), mask)
        return paths

    assert frozen() == {"encoder/pooler/kernel", "encoder/pooler/bias"}
    assert all(path.startswith("encoder/") for path in frozen("encoder/*"))
    assert "encoder/embeddings/token" in frozen("encoder/embeddings/*")
    with pytest.raises(InputError, match="'encodr/\\*' matches no parameter"):
        frozen("encodr/*")
    with pytest.raises(InputError, match="must leave a parameter to train"):
        frozen("*")


def random_like(params: Any, seed: int) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def weights_under(prefix: str) -> dict[str, Weight]:
    return {path: weight for path, weight in WEIGHTS.items() if path.startswith(prefix)}


def test_adamw_is_optax_adamw(params: Any) -> None:
    config = replace(BASE, name="adamw", weight_decay=0.1, warmup_steps=0, max_grad_norm=0.5)
    trained = {"head": params["head"]}
    weights = weights_under("head/")
    schedule, decayed = learning_rate_schedule(config, 50), decay_mask(weights)
    reference = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(schedule, eps=1e-6, weight_decay=0.1, mask=decayed)
    )
    states = make_optimizer(config, weights, 0.0).init(trained), reference.init(trained)
    for seed in range(3):
        grads = random_like(trained, seed)
        mine, first = make_optimizer(config, weights, schedule(seed)).update(grads, states[0], trained)
        theirs, second = reference.update(grads, states[1], trained)
        states = first, second
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), mine, theirs)


def test_independent_decay_follows_the_schedule_and_not_the_peak(params: Any) -> None:
    trained = {"head": params["head"]}
    zeros = jax.tree.map(jnp.zeros_like, trained)
    for peak in (1.0, 1e-3):
        config = replace(BASE, learning_rate=peak, weight_decay=0.1, independent_weight_decay=True)
        # The learning rate of a step in which the schedule is at a quarter of its peak.
        optimizer = make_optimizer(config, weights_under("head/"), peak / 4)
        updates, _ = optimizer.update(zeros, optimizer.init(trained), trained)
        kernel = trained["head"]["dense"]["kernel"]
        np.testing.assert_allclose(updates["head"]["dense"]["kernel"], -0.025 * kernel, rtol=1e-6)
        assert not updates["head"]["dense"]["bias"].any()


@pytest.mark.slow
def test_lamb_adapts_each_layer_of_a_stack_by_itself(params: Any) -> None:
    config = replace(BASE, name="lamb", weight_decay=0.1, warmup_steps=0, max_grad_norm=None)
    layers = jax.tree.map(
        lambda w: w * jnp.array([1.0, 5.0, 0.1]).reshape(-1, *[1] * (w.ndim - 1)), params["encoder"]["layers"]
    )
    stacked = {"encoder": {"layers": layers}}
    weights = weights_under("encoder/layers/")
    decayed = decay_mask(weights)["encoder"]["layers"]
    optimizer = make_optimizer(config, weights, 1.0)
    grads = random_like(stacked, 0)
    updates, _ = optimizer.update(grads, optimizer.init(stacked), stacked)

    def slice_of(tree: Any, index: int) -> Any:
        return jax.tree.map(lambda w: w[index], tree)

    for index in range(3):
        alone = slice_of(layers, index)
        reference = optax.chain(
            optax.scale_by_adam(eps=1e-6),
            optax.add_decayed_weights(0.1, decayed),
            optax.masked(optax.scale_by_trust_ratio(), decayed),
            optax.scale_by_learning_rate(1.0),
        )
        expected, _ = reference.update(
            slice_of(grads["encoder"]["layers"], index), reference.init(alone), alone
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            slice_of(updates["encoder"]["layers"], index),
            expected,
        )


# Wide enough for Adafactor to factor its matrices.
WIDE = replace(small.MODEL, hidden_dim=128)


def program_of(name: Any, mesh: tuple[int, int, int] = (1, 1, 1)) -> Program:
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2 if name == "adafactor" else 1e-3)
    return small.program_of(mesh, model=WIDE, optimizer=optimizer)


def train_on(program: Program, state: TrainState, steps: range) -> tuple[TrainState, list[float]]:
    losses = []
    with jax.set_mesh(program.mesh):
        for step in steps:
            batch, votes = program.put(small.batch_of(step)), program.stop_votes(False)
            state, metrics = program.train(state, batch, votes)
            losses.append(float(metrics.loss))
    return state, losses


def bytes_per_device(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "name",
    [pytest.param("lamb", marks=pytest.mark.slow), "adafactor", pytest.param("muon", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "mesh",
    [(2, 2, 2), *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ((8, 1, 1), (2, 4, 1), (1, 1, 8)))],
)
def test_updates_are_exact_in_float64_on_any_mesh(name: Any, mesh: tuple[int, int, int]) -> None:
    """To a few roundings of float64, with parameters and moments sharded as in a run."""
    with jax.enable_x64(True):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program_of(name, mesh).abstract_state)
        model = split_model(BertMaskedLM(WIDE, key=jax.random.key(0)))[1]
        params, *grads = (
            jax.tree.map(lambda w: w.astype(jnp.float64), random_like(model, seed)) for seed in range(3)
        )
        weights = declared_weights(abstract_masked_lm(WIDE))
        optimizer = make_optimizer(OptimizerConfig(name=name), weights, 2.0**-7)

        def updates_of(placed: bool) -> Any:
            def put(tree: Any, where: Any) -> Any:
                return jax.device_put(tree, where if placed else jax.devices()[0])

            out = (shardings.params, shardings.opt_state) if placed else None
            step = jax.jit(optimizer.update, out_shardings=out)
            weights = put(params, shardings.params)
            state = put(optimizer.init(params), shardings.opt_state)
            for gradient in grads:
                updates, state = step(put(gradient, shardings.params), state, weights)
            return updates

        def compare(path: str, a: Any, b: Any) -> None:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14, err_msg=path)

        map_paths(compare, updates_of(True), updates_of(False))


@pytest.mark.release
@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_moments_are_sharded_and_training_resumes_on_another_mesh(name: Any, tmp_path: Path) -> None:
    eight, one = program_of(name, (2, 2, 2)), program_of(name)
    state, losses = train_on(eight, eight.initial_state(), range(4))
    share = bytes_per_device(state.params)
    if name == "adafactor":
        assert bytes_per_device(state.opt_state) < 0.2 * share, "rows, columns, biases and the segment table"
    else:
        layers = state.params["encoder"]["layers"]
        matrices: list[Any] = []
        map_paths(lambda path, leaf: path.endswith("kernel") and matrices.append(leaf), layers)
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 8]
        assert bytes_per_device(moments) == 2 * share - bytes_per_device(matrices)
    alone, losses_alone = train_on(one, one.initial_state(), range(4))
    np.testing.assert_allclose(losses, losses_alone, atol=1e-5)

    with Checkpointer(tmp_path / "eight") as checkpointer:
        checkpointer.save(4, state, {})
        _, moved = checkpointer.restore(one.abstract_state, {})
    with Checkpointer(tmp_path / "one") as checkpointer:
        checkpointer.save(4, alone, {})
        _, again = checkpointer.restore(one.abstract_state, {})
    _, continued = train_on(eight, state, range(4, 6))
    np.testing.assert_allclose(train_on(one, moved, range(4, 6))[1], continued, atol=1e-5)
    resumed, uninterrupted = (train_on(one, start, range(4, 6)) for start in (again, alone))
    assert resumed[1] == uninterrupted[1]
    jax.tree.map(np.testing.assert_array_equal, resumed[0], uninterrupted[0])
