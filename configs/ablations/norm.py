"""Where LayerNorm stands, after each residual (BERT) or before each block, at two learning rates.

python scripts/ablate.py configs/ablations/norm.py --output runs/ablations/norm --seeds 3

Xiong et al. 2020 found that pre-LN trains at learning rates, and without the warm-up, at which post-LN fails.
"""

from dataclasses import replace

from tiny_wiki import config as parent

from mlm_jax.config import TrainConfig


def trials() -> dict[str, TrainConfig]:
    """Each placement of the norm at each rate."""
    base = parent()
    return {
        f"{placement}_{name}": replace(
            base,
            model=replace(base.model, norm_placement=placement),
            optimizer=replace(base.optimizer, learning_rate=rate),
        )
        for name, rate in (("1e-3", 1e-3), ("1e-2", 1e-2))
        for placement in ("post", "pre")
    }
