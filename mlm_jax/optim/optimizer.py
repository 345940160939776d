"""Learning-rate schedules, weight-decay mask, freezing, and the optax chain of every optimizer.

`weights` maps the path of each parameter ("encoder/layers/attention/query/kernel") to its declaration.
"""

from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlm_jax.config import OptimizerConfig
from mlm_jax.errors import InputError
from mlm_jax.optim.layer_transforms import (
    per_layer,
    scale_by_depth,
    scale_by_factored_rms,
    scale_by_muon,
    stable_adamw,
)
from mlm_jax.parallel.weights import Weights, nested

# A masked-LM loss has no gradient for the pooler, so weight decay would shrink it to zero.
_POOLER = "encoder/pooler/*"


def learning_rate_schedule(config: OptimizerConfig, num_steps: int, peak: Any = None) -> optax.Schedule:
    """Maps a step (int, from 0) to a learning rate: linear warm-up from 0, then the config's decay.

    `peak`, a number or a traced float32 [], replaces the config's learning rate.
    """
    peak = config.learning_rate if peak is None else peak
    final = peak * config.final_learning_rate_fraction
    remaining = max(1, num_steps - config.warmup_steps)
    if config.schedule == "linear":
        decay = optax.linear_schedule(peak, final, remaining)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining, alpha=config.final_learning_rate_fraction)
    else:
        begin = remaining - config.cooldown_steps
        decay = _cooldown(config, peak, final, begin)
    warmup = optax.linear_schedule(0.0, peak, max(1, config.warmup_steps))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def _cooldown(config: OptimizerConfig, peak: Any, final: Any, begin: int) -> optax.Schedule:
    if config.cooldown_shape == "linear":
        return optax.linear_schedule(peak, final, config.cooldown_steps, transition_begin=begin)
    passed = optax.linear_schedule(0.0, 1.0, config.cooldown_steps, transition_begin=begin)
    return lambda step: peak + (final - peak) * jnp.sqrt(passed(step))


def decay_mask(weights: Weights) -> Any:
    """Returns a nested dict that is True for weights to decay: all but biases and norms (Devlin et al. 2018, A.2)."""
    return nested({path: weight.is_matrix for path, weight in weights.items()})


def frozen_mask(config: OptimizerConfig, weights: Weights) -> Any:
    """Returns a nested dict that is True for frozen weights: matches of `config.freeze`, and a masked LM's pooler.

    Raises:
        InputError: a pattern matches no parameter, or the patterns leave nothing to train.
    """
    for pattern in config.freeze:
        if not any(fnmatchcase(path, pattern) for path in weights):
            raise InputError(
                f"optimizer.freeze: {pattern!r} matches no parameter: paths are like {next(iter(weights))!r}"
            )
    classifies = any(path.startswith("classifier/") for path in weights)
    patterns = config.freeze if classifies else (*config.freeze, _POOLER)
    frozen = {path: any(fnmatchcase(path, pattern) for pattern in patterns) for path in weights}
    if all(frozen.values()):
        raise InputError(f"optimizer.freeze = {config.freeze!r}: must leave a parameter to train")
    return nested(frozen)


def make_optimizer(
    config: OptimizerConfig, weights: Weights, learning_rate: Any, peak: Any = None
) -> optax.GradientTransformation:
    """Returns the optax chain for parameters with the structure of `weights`.

    Clips gradients, applies the optimizer's update rule, adds decoupled weight decay, and scales by depth and learning
    rate. Layers are treated separately, although they are stacked in one array. `learning_rate` applies to one step,
    and `peak` replaces the config's learning rate; both are numbers or traced float32 [], and the state does not depend
    on them.
    """
    peak = config.learning_rate if peak is None else peak
    rate_of_decay = config.weight_decay / peak if config.independent_weight_decay else config.weight_decay
    decay = optax.add_decayed_weights(rate_of_decay, mask=decay_mask(weights))
    chain = []
    if config.max_grad_norm is not None:
        chain.append(optax.clip_by_global_norm(config.max_grad_norm))
    if config.name == "stable_adamw":
        chain.append(stable_adamw(_adam(config), decay, config.coefficients, weights))
    else:
        chain += [*_update_rule(config, weights), decay]
    if config.name == "lamb":
        # As in the authors' code, weights that do not decay are not adapted either.
        chain.append(optax.masked(per_layer(optax.scale_by_trust_ratio(), weights), decay_mask(weights)))
    if config.layer_rate_decay != 1.0:
        chain.append(scale_by_depth(config.layer_rate_decay, weights))
    # The schedule ignores optax's count of applied updates, which does not change when a step is skipped. The count
    # stays in the state, so that checkpoints keep their structure.
    chain.append(optax.scale_by_learning_rate(lambda _: learning_rate))
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", frozen_mask(config, weights))
    return optax.partition({"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, labels)


def _update_rule(config: OptimizerConfig, weights: Weights) -> list[optax.GradientTransformation]:
    """Returns the transformations from a gradient to the optimizer's update, before weight decay and learning rate."""
    coefficients = config.coefficients
    if config.name == "adafactor":
        # As in optax.adafactor: the learning rate is relative to the weight's root mean square.
        parts = [
            scale_by_factored_rms(coefficients["epsilon"], weights),
            per_layer(optax.clip_by_block_rms(1.0), weights),
            per_layer(optax.scale_by_param_block_rms(), weights),
        ]
        if coefficients["beta1"] > 0:
            parts.append(optax.ema(coefficients["beta1"], debias=False))
        return parts
    adam = _adam(config)
    if config.name == "muon":
        by_kind = {"matrix": scale_by_muon(coefficients["momentum"], weights), "other": adam}
        # The linear maps in the layers; embedding tables are not stacked.
        kinds = {
            path: "matrix" if weight.stacked and weight.is_matrix else "other"
            for path, weight in weights.items()
        }
        return [optax.partition(by_kind, nested(kinds))]
    return [adam]


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    coefficients = config.coefficients
    return optax.scale_by_adam(coefficients["beta1"], coefficients["beta2"], coefficients["epsilon"])
