"""No contestant but a question: whether torch sees an NVIDIA card, which needs a build with CUDA."""

from typing import Any

import torch

from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Tells in `obstacle` why it does not, or None."""
    there = torch.version.cuda is not None and torch.cuda.is_available()
    return float, {"obstacle": None if there else f"torch {torch.__version__} sees no NVIDIA GPU"}


if __name__ == "__main__":
    serve(prepare)
