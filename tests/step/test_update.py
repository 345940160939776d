"""The parameter update, with losses that are linear in small weights."""

from dataclasses import replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from mlm_jax.config import OptimizerConfig
from mlm_jax.config.optimizer import Optimizer
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.weights import Weight
from mlm_jax.step.update import (
    Hyperparameters,
    UpdateRule,
    hyperparameters_of,
    make_update_rule,
    state_of,
    update,
)
from tests.small import CONFIG


def summed_loss(params: Any, inputs: Array, dropout_key: Array) -> LossSums:
    return LossSums(loss=jnp.sum(params["w"] * inputs), correct=jnp.zeros(()), weight=jnp.ones(()))


WEIGHTS = {
    "w": Weight("w", (2,), ("embed",)),
    "layers": Weight("layers", (2, 4, 3), ("layers", "embed", "intermediate")),
}


def linear_loss(params: Any, slopes: Any, dropout_key: Array) -> LossSums:
    """A loss whose gradient is `slopes`."""
    products = jax.tree.map(lambda param, slope: jnp.sum(param * slope), params, slopes)
    return LossSums(loss=sum(jax.tree.leaves(products)), correct=jnp.zeros(()), weight=jnp.ones(()))


def rule_of(**settings: Any) -> tuple[UpdateRule, Hyperparameters]:
    config = replace(CONFIG, optimizer=OptimizerConfig(max_grad_norm=None, **settings))
    return make_update_rule(config, WEIGHTS), hyperparameters_of(config)


def filled(value: float) -> dict[str, Array]:
    return {path: jnp.full(weight.shape, value) for path, weight in WEIGHTS.items()}


def assert_finite(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_an_update_that_is_not_finite_is_skipped_and_counted(name: str) -> None:
    """With a finite loss and gradient: the learning rate is too large for float32, or the decay of the weights."""
    for settings in ({"learning_rate": 3e38}, {"learning_rate": 1e30, "weight_decay": 1e30}):
        rule, hyperparameters = rule_of(name=name, **settings)
        state = state_of(rule, filled(2.0))
        for step in (1, 2):
            state, sums, norm = update(rule, hyperparameters, state, filled(1e3), linear_loss)
            assert np.isfinite(sums.loss)
            assert np.isfinite(norm)
            assert state.nonfinite_steps == state.step == step
        jax.tree.map(np.testing.assert_array_equal, state.params, filled(2.0))
        assert_finite(state)


@pytest.mark.parametrize("name", get_args(Optimizer))
@pytest.mark.parametrize("slope", [1e-45, 1e18, 3e38, float("nan")])
def test_no_gradient_makes_the_state_non_finite(name: str, slope: float) -> None:
    """Norms of gradients overflow before the second moments do."""
    rule, hyperparameters = rule_of(name=name, learning_rate=1e-3)
    state = state_of(rule, filled(1.0))
    for step in range(4):
        slopes = filled(1e-3)
        # One element of one layer, in every other step.
        slopes["layers"] = slopes["layers"].at[1, 2, 0].set(slope if step % 2 else 0.0)
        state, *_ = update(rule, hyperparameters, state, slopes, linear_loss)
        assert_finite(state)
    assert not np.array_equal(state.params["layers"], filled(1.0)["layers"])


def test_weights_that_grow_without_end_stay_finite() -> None:
    """Every weight is multiplied by -1e10 in each step, until the next product would overflow."""
    rule, hyperparameters = rule_of(learning_rate=1e5, weight_decay=1e5, final_learning_rate_fraction=1.0)
    state, sizes = state_of(rule, filled(1.0)), []
    for _ in range(6):
        state, *_ = update(rule, hyperparameters, state, filled(0.0), linear_loss)
        sizes.append(float(jnp.abs(state.params["layers"]).max()))
    assert_finite(state)
    assert sizes[0] == pytest.approx(1e10)
    assert sizes[-1] == sizes[-2]
    assert state.nonfinite_steps >= 4


def test_skipped_steps_count_for_the_learning_rate() -> None:
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=4, weight_decay=0.0)
    config = replace(CONFIG, optimizer=optimizer)
    rule = make_update_rule(config, {"w": Weight("w", (2,), ("embed",))})
    state = state_of(rule, {"w": jnp.zeros(2)})
    for slope in (jnp.nan, jnp.nan, 1.0):
        assert not state.params["w"].any()
        state, *_ = update(rule, hyperparameters_of(config), state, jnp.full(2, slope), summed_loss)
    # Adam's first update has the size of the learning rate, which is halfway through the warm-up at step 2.
    np.testing.assert_allclose(state.params["w"], -0.5, rtol=1e-4)
