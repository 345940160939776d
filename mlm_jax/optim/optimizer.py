"""Learning-rate schedules, the weight-decay mask, freezing, and the optax chain of every optimiser.

Parameters are the nested dict that the model's parameters are; a path joins its keys with "/".
"""

from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from mlm_jax.config import OptimizerConfig
from mlm_jax.errors import InputError
from mlm_jax.optim.layer_transforms import (
    LAYERS,
    is_layer_kernel,
    map_paths,
    per_layer,
    scale_by_depth,
    scale_by_factored_rms,
    scale_by_muon,
)

# By the last name of a parameter's path. BERT decays neither biases nor LayerNorm (Devlin et al. 2018, A.2).
_DECAYED = frozenset({"kernel", "token", "position", "segment", "output"})
_SPARED = frozenset({"bias", "scale"})
# A classifier's loss alone reaches the pooler: in a masked LM decay would shrink it to nothing.
_POOLER = "encoder/pooler/*"


def learning_rate_schedule(config: OptimizerConfig, num_steps: int, peak: Any = None) -> optax.Schedule:
    """Step (int, from 0) to learning rate: linear warm-up from 0, then the decay that the config names.

    `peak`, a number or a float32 [] that is traced, stands in for the config's learning rate.
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
        decay = optax.linear_schedule(peak, final, config.cooldown_steps, transition_begin=begin)
    warmup = optax.linear_schedule(0.0, peak, max(1, config.warmup_steps))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies, in the structure of `params`.

    Raises:
        ValueError: a parameter's name is known neither as decayed nor as spared.
    """

    def decays(path: str, _: Any) -> bool:
        name = path.rsplit("/", 1)[-1]
        if name not in _DECAYED | _SPARED:
            raise ValueError(f"{path}: no weight-decay rule: add {name!r} to _DECAYED or _SPARED")
        return name in _DECAYED

    return map_paths(decays, params)


def frozen_mask(config: OptimizerConfig, params: Any) -> Any:
    """True where a parameter keeps its value: what `config.freeze` matches, and a masked LM's pooler.

    Raises:
        InputError: a pattern matches no parameter, or the patterns leave nothing to train.
    """
    paths: list[str] = []
    map_paths(lambda path, _: paths.append(path), params)
    for pattern in config.freeze:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise InputError(
                f"optimizer.freeze: {pattern!r} matches no parameter: paths are like {paths[0]!r}"
            )
    patterns = (
        config.freeze if any(path.startswith("classifier/") for path in paths) else (*config.freeze, _POOLER)
    )
    mask = map_paths(lambda path, _: any(fnmatchcase(path, pattern) for pattern in patterns), params)
    if all(jax.tree.leaves(mask)):
        raise InputError(f"optimizer.freeze = {config.freeze!r}: must leave a parameter to train")
    return mask


def make_optimizer(
    config: OptimizerConfig, num_steps: int, params: Any, peak: Any = None
) -> optax.GradientTransformation:
    """The optax chain over `params` (arrays or their abstract values; only structure and shapes are read).

    Clip, what is the optimiser's own, decoupled weight decay, layer-wise decay of the learning rate, schedule. Though
    layers are stacked in one array, no optimiser looks at two of them at once. `peak` is that of
    `learning_rate_schedule`; the state does not depend on it.
    """
    chain = []
    if config.max_grad_norm is not None:
        chain.append(optax.clip_by_global_norm(config.max_grad_norm))
    chain += _own_transformations(config)
    chain.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    if config.name == "lamb":
        # The authors' code exempts from adaptation what it exempts from decay.
        chain.append(optax.masked(per_layer(optax.scale_by_trust_ratio()), decay_mask))
    if config.layer_rate_decay != 1.0:
        chain.append(scale_by_depth(config.layer_rate_decay, _num_layers(params)))
    chain.append(optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps, peak)))
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", frozen_mask(config, params))
    return optax.partition({"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, labels)


def with_schedule_at(opt_state: Any, step: Any) -> Any:
    """Returns the optimizer state with its learning-rate schedule at `step`, int32 [].

    optax counts the updates that were applied. The schedule is a function of the step number instead, as the batches
    and masks are: otherwise it would fall behind by every skipped step. Adam's bias correction counts applied updates.
    """

    def is_schedule(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: part._replace(count=step) if is_schedule(part) else part, opt_state, is_leaf=is_schedule
    )


def _own_transformations(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """What makes a gradient the optimiser's update, before weight decay and the learning rate."""
    coefficients = config.coefficients
    if config.name == "adafactor":
        # As optax.adafactor has them: the learning rate is relative to the weight's root mean square.
        parts = [
            scale_by_factored_rms(coefficients["epsilon"]),
            per_layer(optax.clip_by_block_rms(1.0)),
            per_layer(optax.scale_by_param_block_rms()),
        ]
        if coefficients["beta1"] > 0:
            parts.append(optax.ema(coefficients["beta1"], debias=False))
        return parts
    adam = optax.scale_by_adam(coefficients["beta1"], coefficients["beta2"], coefficients["epsilon"])
    if config.name == "muon":
        by_kind = {"matrix": scale_by_muon(coefficients["momentum"]), "other": adam}
        return [optax.partition(by_kind, _muon_labels)]
    return [adam]


def _muon_labels(params: Any) -> Any:
    return map_paths(lambda path, _: "matrix" if is_layer_kernel(path) else "other", params)


def _num_layers(params: Any) -> int:
    """Layers of a stack, 0 where `params` has none."""
    depths = map_paths(lambda path, leaf: leaf.shape[0] if path.startswith(LAYERS) else 0, params)
    return max(jax.tree.leaves(depths))
