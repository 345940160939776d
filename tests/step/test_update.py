"""The parameter update, with a loss that is linear in one small weight."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mlm_jax.config import OptimizerConfig
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.weights import Weight
from mlm_jax.step.update import hyperparameters_of, make_update_rule, state_of, update
from tests.small import CONFIG


def summed_loss(params: Any, inputs: Array, dropout_key: Array) -> LossSums:
    return LossSums(loss=jnp.sum(params["w"] * inputs), correct=jnp.zeros(()), weight=jnp.ones(()))


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
