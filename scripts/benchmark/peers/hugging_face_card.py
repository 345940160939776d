"""Not a contestant: reports whether torch can use an NVIDIA GPU, which needs a CUDA build."""

from typing import Any

import torch

from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Reports as `obstacle` why it cannot, or None."""
    there = torch.version.cuda is not None and torch.cuda.is_available()
    return float, {"obstacle": None if there else f"torch {torch.__version__} sees no NVIDIA GPU"}


if __name__ == "__main__":
    serve(prepare)
