"""No contestant but a question: what card jax computes on. It is asked in a process that gives the card back."""

from typing import Any

import jax

from mlm_jax.model.kernels import cudnn_obstacle
from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Tells the card's kind and the bytes that jax may use of it, or in `obstacle` why it is not one to measure."""
    device = jax.devices()[0]
    obstacle = cudnn_obstacle(device, length=128, head_dim=64, dtype="bfloat16")
    if obstacle is not None:
        return float, {"obstacle": obstacle}
    memory = device.memory_stats()["bytes_limit"]
    return float, {"obstacle": None, "kind": device.device_kind, "memory_bytes": memory}


if __name__ == "__main__":
    serve(prepare)
