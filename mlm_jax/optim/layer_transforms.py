"""optax's transformations where layers are stacked in one array: each layer's weight is a weight of its own.

Parameters are the nested dict that the model's parameters are; a path joins its keys with "/". What lies under
`encoder/layers` has a leading axis `layers`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

LAYERS = "encoder/layers/"
_EMBEDDINGS = "encoder/embeddings/"

# How many dimensions of a layer's kernel are inputs, by the name of its module: the others are outputs.
_NUM_INPUTS = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}


def map_paths(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function(path, leaf, *leaves)` over a nested dict of parameters and others of its structure."""
    return jax.tree.map_with_path(
        lambda path, *leaves: function("/".join(str(entry.key) for entry in path), *leaves), tree, *rest
    )


def is_layer_kernel(path: str) -> bool:
    """Whether a parameter is the matrices of a linear map in every layer."""
    return path.startswith(LAYERS) and path.endswith("/kernel")


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation without state that looks at one weight at a time, with each slice of a stack such a weight."""

    def transform(update: Array, param: Array) -> Array:
        return transformation.update(update, transformation.init(param), param)[0]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def transform_leaf(path: str, update: Array, param: Array) -> Array:
            return (jax.vmap(transform) if path.startswith(LAYERS) else transform)(update, param)

        return map_paths(transform_leaf, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def scale_by_factored_rms(epsilon: float) -> optax.GradientTransformation:
    """Adafactor's second moments (Shazeer & Stern 2018): optax's, of each layer's matrix its rows and columns.

    An attention kernel is the matrix D x HK or HK x D. A matrix is factored where both sides are 128 or more; the
    moments of every other weight have its shape. Where a tree of the state has nothing to hold of a weight it has one
    number a layer.
    """
    one_weight = optax.scale_by_factored_rms(epsilon=epsilon)

    def init(params: Any) -> optax.FactoredState:
        def of(path: str, param: Array) -> optax.FactoredState:
            initial = jax.vmap(one_weight.init) if path.startswith(LAYERS) else one_weight.init
            state = initial(_as_matrices(path, param))
            return state._replace(v=_reshaped_where_whole(state.v, param))

        return optax.FactoredState(
            count=jnp.zeros((), jnp.int32),
            v_row=map_paths(lambda path, param: of(path, param).v_row, params),
            v_col=map_paths(lambda path, param: of(path, param).v_col, params),
            v=map_paths(lambda path, param: of(path, param).v, params),
        )

    def update(
        updates: Any, state: optax.FactoredState, params: Any = None
    ) -> tuple[Any, optax.FactoredState]:
        del params

        def scale(update: Array, v_row: Array, v_col: Array, v: Array) -> tuple[Array, ...]:
            scaled, new = one_weight.update(update, optax.FactoredState(state.count, v_row, v_col, v), update)
            return scaled, new.v_row, new.v_col, new.v

        def scale_leaf(path: str, update: Array, v_row: Array, v_col: Array, v: Array) -> tuple[Array, ...]:
            matrices = _as_matrices(path, update)
            one_or_all = jax.vmap(scale) if path.startswith(LAYERS) else scale
            scaled, v_row, v_col, new_v = one_or_all(
                matrices, v_row, v_col, _reshaped_where_whole(v, matrices)
            )
            return scaled.reshape(update.shape), v_row, v_col, new_v.reshape(v.shape)

        results = map_paths(scale_leaf, updates, state.v_row, state.v_col, state.v)
        scaled, v_row, v_col, v = (
            jax.tree.map(lambda _, result, i=i: result[i], updates, results) for i in range(4)
        )
        return scaled, optax.FactoredState(optax.safe_increment(state.count), v_row, v_col, v)

    return optax.GradientTransformation(init, update)


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Orthogonalised momentum (Jordan et al. 2024) of the kernels of layers: optax's, each layer's matrix by itself.

    An attention kernel is the matrix D x HK or HK x D. An update is scaled by 0.2 √max(inputs, outputs), so that its
    root mean square is that of AdamW's, whose learning rate and weight decay carry over (Liu et al. 2025).
    """

    def dimension_numbers(updates: Any) -> Any:
        def axes(path: str, update: Array) -> MuonDimensionNumbers:
            split = 1 + _num_inputs(path)
            return MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, update.ndim)))

        return map_paths(axes, updates)

    def match_rms(updates: Any, _: Any = None) -> Any:
        return map_paths(
            lambda path, update: 0.2 * math.sqrt(max(_as_matrices(path, update).shape[1:])) * update, updates
        )

    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=dimension_numbers),
        optax.stateless(match_rms),
    )


def scale_by_depth(decay: float, num_layers: int) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT), as BEiT counts layers.

    The update of layer l of L (from 0, the first after the embeddings) is scaled by decay^(L - l), that of the
    embeddings by decay^(L + 1); what comes after the layers (pooler, head, classifier) stays as it is. ELECTRA's code
    has one power more for embeddings and layers. A tied embedding is an embedding.
    """
    powers = range(num_layers, 0, -1)

    def scale(path: str, update: Array) -> Array:
        if path.startswith(_EMBEDDINGS):
            return decay ** (num_layers + 1) * update
        if path.startswith(LAYERS):
            factors = jnp.array([decay**power for power in powers], update.dtype)
            return jnp.expand_dims(factors, range(1, update.ndim)) * update
        return update

    return optax.stateless(lambda updates, _: map_paths(scale, updates))


def _as_matrices(path: str, weight: Array) -> Array:
    """[layers, inputs, outputs] of a stack of kernels, [layers, size] of one of vectors, any other weight as it is."""
    if is_layer_kernel(path):
        split = 1 + _num_inputs(path)
        return weight.reshape(weight.shape[0], math.prod(weight.shape[1:split]), -1)
    return weight.reshape(weight.shape[0], -1) if path.startswith(LAYERS) else weight


def _num_inputs(path: str) -> int:
    module = path.split("/")[-2]
    if module not in _NUM_INPUTS:
        raise ValueError(f"{path}: not known as a matrix: add {module!r} to _NUM_INPUTS")
    return _NUM_INPUTS[module]


def _reshaped_where_whole(moments: Array, weight: Array) -> Array:
    """Moments of every element in the shape of the weight; anything smaller as it is."""
    return moments.reshape(weight.shape) if moments.size == weight.size else moments
