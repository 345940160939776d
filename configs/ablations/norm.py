"""LayerNorm after each residual (BERT) or before each block, at two learning rates.

    mlm-jax ablate ablations/norm --output runs/ablations/norm --seeds 3

`tiny_wiki.py` has the commands that prepare the data.

Xiong et al. 2020 found that pre-LN trains at high learning rates and without warm-up, where post-LN fails.

Result: 4.60 and 4.72 nats at 1e-3, no difference seen; 6.41 and 5.99 at 1e-2, where post-LN learns only the
frequencies of tokens. 12 runs of 117 to 144 s on two busy CPU cores; the first one takes 75 s on idle cores.
"""

from dataclasses import replace

from mlm_jax.config import TrainConfig
from mlm_jax.configs.ablations.tiny_wiki import config as parent


def trials() -> dict[str, TrainConfig]:
    """Each placement of the norm at each learning rate."""
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
