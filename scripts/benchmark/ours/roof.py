"""Contestant that measures the machine's peak: one large matrix product, in FLOP/s."""

from typing import Any

import jax
import jax.numpy as jnp

from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round of `products` products of square matrices of `size`; units are FLOPs."""
    size, products = settings["size"], settings["products"]
    matrix = jax.random.normal(jax.random.key(0), (size, size), settings["dtype"]) / size**0.5
    multiply = jax.jit(jnp.matmul)

    def work() -> float:
        result = matrix
        for _ in range(products):
            result = multiply(matrix, result)
        jax.block_until_ready(result)
        return products * 2.0 * size**3

    return work, {"version": f"jax {jax.__version__}"}


if __name__ == "__main__":
    serve(prepare)
