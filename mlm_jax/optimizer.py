"""Learning-rate schedules, the weight-decay mask, freezing, and the optax chain of AdamW and LAMB.

Parameters are the nested dict that the model's parameters are; a path joins its keys with "/".
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from mlm_jax.config import OptimizerConfig
from mlm_jax.errors import InputError

# By the last name of a parameter's path. BERT decays neither biases nor LayerNorm (Devlin et al. 2018, A.2).
_DECAYED = frozenset({"kernel", "token", "position", "segment", "output"})
_SPARED = frozenset({"bias", "scale"})
# A classifier's loss alone reaches the pooler: in a masked LM decay would shrink it to nothing.
_POOLER = "encoder/pooler/*"
_STACKED = "encoder/layers/"


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


def map_paths(function: Callable[[str, Any], Any], params: Any) -> Any:
    """`function(path, leaf)` over a nested dict of parameters."""
    return jax.tree.map_with_path(
        lambda path, leaf: function("/".join(str(entry.key) for entry in path), leaf), params
    )


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
    """The optax chain over `params` (arrays or their abstract values; only the structure is read).

    `peak` is that of `learning_rate_schedule`; the state does not depend on it.

    AdamW: clip, Adam moments, decoupled decay, schedule. LAMB (You et al. 2020): the same with each decayed
    weight's update scaled to the weight's norm, layer by layer though layers are stacked in one array.
    """
    chain = []
    if config.max_grad_norm is not None:
        chain.append(optax.clip_by_global_norm(config.max_grad_norm))
    chain.append(optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon))
    chain.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    if config.name == "lamb":
        # The authors' code exempts from adaptation what it exempts from decay.
        chain.append(optax.masked(_scale_by_trust_ratio_per_layer(), decay_mask))
    chain.append(optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps, peak)))
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", frozen_mask(config, params))
    return optax.partition({"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, labels)


def _scale_by_trust_ratio_per_layer() -> optax.GradientTransformation:
    """optax's trust ratio, with each slice of a stacked weight a weight of its own."""
    whole = optax.scale_by_trust_ratio()

    def scale(update: Any, param: Any) -> Any:
        return whole.update(update, whole.init(param), param)[0]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale_leaf(path: str, update: Any, param: Any) -> Any:
            return (jax.vmap(scale) if path.startswith(_STACKED) else scale)(update, param)

        paths = map_paths(lambda path, _: path, updates)
        return jax.tree.map(scale_leaf, paths, updates, params), state

    return optax.GradientTransformation(whole.init, update)
