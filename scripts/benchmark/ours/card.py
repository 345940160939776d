"""Not a contestant: reports the GPU that jax uses, from a process that frees it afterwards."""

from typing import Any

import jax

from mlm_jax.model.kernels import cudnn_obstacle
from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Reports the kind of the GPU and the memory available to jax, or the `obstacle` to a measurement."""
    device = jax.devices()[0]
    obstacle = cudnn_obstacle(device, length=128, head_dim=64, dtype="bfloat16")
    if obstacle is not None:
        return float, {"obstacle": obstacle}
    memory = device.memory_stats()["bytes_limit"]
    return float, {"obstacle": None, "kind": device.device_kind, "memory_bytes": memory}


if __name__ == "__main__":
    serve(prepare)
