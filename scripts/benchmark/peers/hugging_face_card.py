"""Not a contestant: checks that torch can use an NVIDIA GPU, which requires a CUDA build."""

from typing import Any

import torch

from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Reports the `obstacle` to using the GPU, or None."""
    there = torch.version.cuda is not None and torch.cuda.is_available()
    return float, {"obstacle": None if there else f"torch {torch.__version__} sees no NVIDIA GPU"}


if __name__ == "__main__":
    serve(prepare)
