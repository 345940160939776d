"""optax transformations for stacked layers: each layer's slice of an array is treated as a separate weight.

Parameters are nested dicts of arrays. `weights` maps the path of each parameter to its declaration, which specifies if
it is stacked and if it is a matrix.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

from mlm_jax.parallel.weights import Weights

_EMBEDDINGS = "encoder/embeddings/"


def map_paths(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(path, leaf, *leaves)` over a nested dict of parameters and other trees of the same structure."""
    return jax.tree.map_with_path(
        lambda path, *leaves: function("/".join(str(entry.key) for entry in path), *leaves), tree, *rest
    )


def per_layer(transformation: optax.GradientTransformation, weights: Weights) -> optax.GradientTransformation:
    """Applies a stateless transformation of single weights separately to each layer's slice of a stack."""

    def transform(update: Array, param: Array) -> Array:
        return transformation.update(update, transformation.init(param), param)[0]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def transform_leaf(path: str, update: Array, param: Array) -> Array:
            return (jax.vmap(transform) if weights[path].stacked else transform)(update, param)

        return map_paths(transform_leaf, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def scale_by_factored_rms(epsilon: float, weights: Weights) -> optax.GradientTransformation:
    """Scales by Adafactor's second moments (Shazeer & Stern 2018), as optax does for the matrix of a single layer.

    Attention kernels are treated as matrices D x HK or HK x D. A matrix is factored if both sides are at least 128; the
    second moments of all other weights have the weight's shape. Trees of the state without data for a weight have one
    number per layer in its place.
    """
    one_weight = optax.scale_by_factored_rms(epsilon=epsilon)

    def init(params: Any) -> optax.FactoredState:
        def init_leaf(path: str, param: Array) -> optax.FactoredState:
            weight = weights[path]
            initial = jax.vmap(one_weight.init) if weight.stacked else one_weight.init
            state = initial(param.reshape(weight.side_shape))
            return state._replace(v=_reshape_if_whole(state.v, param.shape))

        return optax.FactoredState(
            count=jnp.zeros((), jnp.int32),
            v_row=map_paths(lambda path, param: init_leaf(path, param).v_row, params),
            v_col=map_paths(lambda path, param: init_leaf(path, param).v_col, params),
            v=map_paths(lambda path, param: init_leaf(path, param).v, params),
        )

    def update(
        updates: Any, state: optax.FactoredState, params: Any = None
    ) -> tuple[Any, optax.FactoredState]:
        del params

        def scale(update: Array, v_row: Array, v_col: Array, v: Array) -> tuple[Array, ...]:
            scaled, new = one_weight.update(update, optax.FactoredState(state.count, v_row, v_col, v), update)
            return scaled, new.v_row, new.v_col, new.v

        def scale_leaf(path: str, update: Array, v_row: Array, v_col: Array, v: Array) -> tuple[Array, ...]:
            weight = weights[path]
            scale_one_or_all = jax.vmap(scale) if weight.stacked else scale
            moments = _reshape_if_whole(v, weight.side_shape)
            scaled, v_row, v_col, new_v = scale_one_or_all(
                update.reshape(weight.side_shape), v_row, v_col, moments
            )
            return scaled.reshape(update.shape), v_row, v_col, new_v.reshape(v.shape)

        results = map_paths(scale_leaf, updates, state.v_row, state.v_col, state.v)
        scaled, v_row, v_col, v = (
            jax.tree.map(lambda _, result, i=i: result[i], updates, results) for i in range(4)
        )
        return scaled, optax.FactoredState(optax.safe_increment(state.count), v_row, v_col, v)

    return optax.GradientTransformation(init, update)


def stable_adamw(
    adam: optax.GradientTransformation,
    decay: optax.GradientTransformation,
    coefficients: Mapping[str, float],
    weights: Weights,
) -> optax.GradientTransformation:
    """Adam's update and weight decay, divided by the root mean square of the gradient relative to its second moment.

    Divides only where that exceeds 1 (Wortsman et al. 2023, algorithm 2). The root mean square is that of one weight,
    √(mean of g² / max(u, ε²)), where u is Adam's second moment without its bias. The state is Adam's.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled, new = adam.update(updates, state)
        with_decay, _ = decay.update(scaled, decay.init(params), params)
        unbiased = 1 - coefficients["beta2"] ** new.count

        def clip(path: str, update: Array, grad: Array, moment: Array) -> Array:
            relative = grad**2 / jnp.maximum(moment / unbiased, coefficients["epsilon"] ** 2)
            axes = tuple(range(int(weights[path].stacked), relative.ndim))
            return update / jnp.maximum(1, jnp.sqrt(jnp.mean(relative, axis=axes, keepdims=True)))

        return map_paths(clip, with_decay, updates, new.nu), new

    return optax.GradientTransformation(adam.init, update)


def scale_by_muon(momentum: float, weights: Weights) -> optax.GradientTransformation:
    """Orthogonalizes the momentum of the matrices of layers (Jordan et al. 2024), as optax does for a single layer.

    Attention kernels are treated as matrices D x HK or HK x D. An update is scaled by 0.2 √max(inputs, outputs), so
    that its root mean square matches AdamW's, and AdamW's learning rate and weight decay carry over (Liu et al. 2025).
    """

    def dimension_numbers(updates: Any) -> Any:
        return map_paths(lambda path, _: MuonDimensionNumbers(*weights[path].sides), updates)

    def match_rms(updates: Any, _: Any = None) -> Any:
        return map_paths(
            lambda path, update: 0.2 * math.sqrt(max(weights[path].side_shape[1:])) * update, updates
        )

    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=dimension_numbers),
        optax.stateless(match_rms),
    )


def scale_by_depth(decay: float, weights: Weights) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT), counting layers as BEiT does.

    The update of layer l of L (from 0, the first after the embeddings) is scaled by decay^(L - l), and the update of
    the embeddings by decay^(L + 1). Updates of parameters after the layers (pooler, head, classifier) are not scaled.
    ELECTRA's code has one more power for embeddings and layers. A tied embedding counts as an embedding.
    """
    num_layers = max((weight.shape[0] for weight in weights.values() if weight.stacked), default=0)

    def scale(path: str, update: Array) -> Array:
        if path.startswith(_EMBEDDINGS):
            return decay ** (num_layers + 1) * update
        if weights[path].stacked:
            factors = jnp.array([decay**power for power in range(num_layers, 0, -1)], update.dtype)
            return jnp.expand_dims(factors, range(1, update.ndim)) * update
        return update

    return optax.stateless(lambda updates, _: map_paths(scale, updates))


def _reshape_if_whole(moments: Array, shape: tuple[int, ...]) -> Array:
    """Reshapes moments that have one element per element of the weight; returns smaller moments unchanged."""
    return moments.reshape(shape) if moments.size == math.prod(shape) else moments
