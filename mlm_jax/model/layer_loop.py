"""The loop over layers: a scan over periods of global and local layers, with rematerialization.

B batch, L length, D hidden_dim.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array
from jaxtyping import Float

from mlm_jax.config import ComputeConfig


def apply_in_periods(
    apply_layer: Callable[[int, Array, Any], Array],
    x: Float[Array, "B L D"],
    inputs: Any,
    depth: int,
    period: int,
    compute: ComputeConfig,
    keep: bool,
) -> tuple[Float[Array, "B L D"], list[Float[Array, "B L D"]]]:
    """Applies `depth` layers: a scan over whole periods, then the layers of the last one.

    `apply_layer(place, x, inputs of the layer)` gets the layer's place in its period. Returns the last state and, with
    `keep`, those after each layer.
    """
    count, rest = divmod(depth, period)
    # One array per place: a slice within the loop would be stored once more for the backward pass.
    looped = [
        jax.tree.map(lambda leaf, place=place: leaf[place : count * period : period], inputs)
        for place in range(period)
    ]
    last = [jax.tree.map(lambda leaf, n=n: leaf[depth - rest + n], inputs) for n in range(rest)]

    # Unrolled completely, it is no loop.
    unroll = max(1, (compute.scan_unroll or 1) // period)

    def apply_each(x: Array, inputs: list[Any], in_loop: bool = unroll < count) -> tuple[Array, list[Array]]:
        states = []
        for place, own in enumerate(inputs):
            x = _rematerialized(partial(apply_layer, place), compute, in_loop)(x, own)
            states += [x] if keep else []
        return x, states

    x, by_place = jax.lax.scan(apply_each, x, looped, unroll=unroll)
    x, states_of_rest = apply_each(x, last, in_loop=False)
    states_of_loop = [by_place[n % period][n // period] for n in range(depth - rest)] if keep else []
    return x, states_of_loop + states_of_rest


def _rematerialized(function: Any, compute: ComputeConfig, in_loop: bool) -> Any:
    """Wraps `function` in `jax.checkpoint` with the config's policy."""
    if compute.remat == "none":
        return function
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = dots if compute.remat == "dots" else jax.checkpoint_policies.nothing_saveable
    # Inside a scan, the loop itself prevents XLA from undoing the recomputation.
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_loop)
